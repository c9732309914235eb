/*
 * A plugin for `chroot://`: `distant launch chroot://sid` starts a server inside of the root folder
 * /srv/chroot/sid of this machine, and `chroot://builder@sid` starts it as `builder` of that root.
 *
 * It does all of a launch itself. The server is a child of this process, so the launch lasts as
 * long as the connection, and whatever ends the launch ends the server.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "distant_plugin.h"
#include "json.h"

static const char MANIFEST[] =
    "{\"name\":\"chroot\",\"version\":\"1.0\","
    "\"description\":\"starts a server inside of a root folder of this machine\","
    "\"schemes\":[\"chroot\"],\"options\":["
    "{\"name\":\"folder\",\"type\":\"path\",\"default\":\"/srv/chroot\","
    "\"help\":\"where the root folders are; the host is the name of one of them\"}]}";

/* Where a program without a folder is looked for in there. */
static const char PATH[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum { START_LIMIT_MS = 15000, PROOF_LIMIT_MS = 1000, ARGUMENTS_MAX = 256, WORDS = 4 };

/* What a launch needs to know, and has to free. */
struct plan {
    char *root;    /* the folder that becomes `/` */
    char *user;    /* NULL: stay who we are */
    char *program; /* as it is called in there */
    char *host;    /* the address to listen on */
    char *arguments[ARGUMENTS_MAX];
};

/* What a server said of itself. */
struct server {
    pid_t pid;
    int output;
    int has_line, can_prove;
    char key[65], host[64];
    int port;
    char words[WORDS][200]; /* its last lines that were not about that, the newest one first */
};

/* ---- messages ------------------------------------------------------------------------------ */

static distant_status say(const distant_caller *caller, const text *message, distant_text *reply) {
    distant_text borrowed = {message->ptr, message->length};
    return caller->send(caller->context, borrowed, reply);
}

static void progress(const distant_caller *caller, const char *stage) {
    text message = {NULL, 0, 0};
    text_add(&message, "{\"type\":\"progress\",\"stage\":\"%s\"}", stage);
    say(caller, &message, NULL);
    text_wipe(&message);
}

/*
 * Ends the launch with an error. `%s` in `what` is `name`; `causes` has `count` lines, of which
 * empty ones are left out; `hint` may be NULL.
 */
static distant_status fail_because(const distant_caller *caller, const char *kind, const char *what,
                                   const char *name, const char *const *causes, size_t count,
                                   const char *hint) {
    text message = {NULL, 0, 0}, line = {NULL, 0, 0};
    const char *comma = "";
    text_add(&line, what, name ? name : "");
    text_add(&message, "{\"type\":\"error\",\"kind\":\"%s\",\"message\":", kind);
    text_quote(&message, line.ptr);
    text_add(&message, ",\"causes\":[");
    for (size_t index = 0; index < count; index++) {
        if (!causes[index] || !*causes[index])
            continue;
        text_add(&message, "%s", comma);
        text_quote(&message, causes[index]);
        comma = ",";
    }
    text_add(&message, "]");
    if (hint) {
        text_add(&message, ",\"hint\":");
        text_quote(&message, hint);
    }
    text_add(&message, "}");
    say(caller, &message, NULL);
    text_wipe(&message);
    text_wipe(&line);
    return DISTANT_FAILED;
}

static distant_status fail(const distant_caller *caller, const char *kind, const char *what,
                           const char *name, const char *why, const char *hint) {
    return fail_because(caller, kind, what, name, &why, 1, hint);
}

/* ---- the request --------------------------------------------------------------------------- */

static char *member(json object, const char *name) {
    json value;
    return json_member(object, name, &value) ? json_string(value) : NULL;
}

/* `~` and relative paths are those of whoever wants the launch, not of this process. */
static char *absolute(char *path, json request) {
    json environment;
    char *base = NULL, *joined = NULL;
    const char *rest = path;
    if (path[0] == '/')
        return path;
    if (path[0] == '~' && (path[1] == '/' || !path[1])) {
        if (json_member(request, "environment", &environment))
            base = member(environment, "HOME");
        rest = path + 1;
    } else {
        base = member(request, "cwd");
    }
    if (asprintf(&joined, "%s/%s", base ? base : "", rest) < 0)
        abort();
    free(base);
    free(path);
    return joined;
}

/* Takes what the request says. The request is checked: the options are those of the manifest. */
static void read_request(distant_text request, struct plan *plan) {
    json whole = {request.ptr, request.ptr + request.len}, options, server = {"", ""}, list, item;
    char *destination = member(whole, "destination"), *folder = NULL, *bind;
    char *place = destination ? strstr(destination, "://") : NULL;
    place = place ? place + 3 : destination;
    if (place) {
        char *host = strrchr(place, '@');
        if (host) {
            *host++ = 0;
            plan->user = strndup(place, strcspn(place, ":"));
        } else {
            host = place;
        }
        host[strcspn(host, ":")] = 0;
        if (json_member(whole, "options", &options))
            folder = member(options, "folder");
        folder = absolute(folder ? folder : strdup("/srv/chroot"), whole);
        if (asprintf(&plan->root, "%s/%s", folder, host) < 0)
            abort();
    }
    free(folder);
    free(destination);

    json_member(whole, "server", &server);
    plan->program = member(server, "program");
    if (!plan->program)
        plan->program = strdup("distant");
    bind = member(server, "bind");
    if (bind && strcmp(bind, "ssh")) {
        plan->host = bind;
    } else {
        free(bind);
        plan->host = strdup("127.0.0.1");
    }
    char *first[] = {plan->program, "server", "listen", "--host", plan->host};
    size_t count = sizeof first / sizeof *first;
    memcpy(plan->arguments, first, sizeof first);
    if (json_member(server, "args", &list))
        for (size_t index = 0; count < ARGUMENTS_MAX - 1 && json_item(list, index, &item); index++)
            if ((plan->arguments[count] = json_string(item)))
                count++;
    plan->arguments[count] = NULL;
}

static void forget(struct plan *plan) {
    for (char **argument = plan->arguments + 5; *argument; argument++)
        free(*argument);
    free(plan->root);
    free(plan->user);
    free(plan->program);
    free(plan->host);
}

/* ---- the server ---------------------------------------------------------------------------- */

/* What a child that could not become the server reports before it ends. */
struct failure {
    enum { NO_ROOT, NO_USER, NO_PROGRAM } what;
    int error;
};

/* Becomes a user of the root that this process is in; what /etc/passwd there says is all. */
static int become(const char *name) {
    char line[1024], found[256];
    unsigned uid, gid;
    FILE *users = fopen("/etc/passwd", "re");
    while (users && fgets(line, sizeof line, users)) {
        if (sscanf(line, "%255[^:]:%*[^:]:%u:%u:", found, &uid, &gid) == 3 && !strcmp(found, name)) {
            fclose(users);
            return setgroups(0, NULL) || setgid(gid) || setuid(uid);
        }
    }
    if (users)
        fclose(users);
    errno = ENOENT;
    return -1;
}

/* The child's part, which never returns. */
static void become_server(const struct plan *plan, pid_t parent, int output, int report) {
    static char *environment[] = {(char *)PATH, "LANG=C.UTF-8", "DISTANT_LAUNCH=1", "HOME=/", NULL};
    struct failure failure = {NO_ROOT, 0};
    int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, 0);
    dup2(output, 1);
    dup2(output, 2);
    if (chroot(plan->root) || chdir("/"))
        goto failed;
    failure.what = NO_USER;
    if (plan->user && become(plan->user))
        goto failed;
    failure.what = NO_PROGRAM;
    /*
     * The thread that launches lives as long as the launch, so the server ends with it, also if this
     * process is killed. After `become`, as a change of the user would undo it.
     */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    environ = environment;
    execvp(plan->program, plan->arguments);
failed:
    failure.error = errno;
    _exit(write(report, &failure, sizeof failure) != sizeof failure);
}

/* Starts the server; 1 if it runs. Else it has not come that far, and failure says why. */
static int start(const struct plan *plan, struct server *server, struct failure *failure) {
    int output[2], report[2];
    pid_t parent = getpid();
    *failure = (struct failure){NO_PROGRAM, errno};
    if (pipe2(output, O_CLOEXEC))
        return 0;
    if (pipe2(report, O_CLOEXEC)) {
        close(output[0]);
        close(output[1]);
        return 0;
    }
    server->pid = fork();
    if (server->pid == 0)
        become_server(plan, parent, output[1], report[1]);
    failure->error = errno;
    close(output[1]);
    close(report[1]);
    /* Without a report the child has become the server, which closes the pipe. */
    ssize_t length = -1;
    if (server->pid > 0)
        while ((length = read(report[0], failure, sizeof *failure)) < 0 && errno == EINTR)
            ;
    close(report[0]);
    if (length == 0) {
        server->output = output[0];
        return 1;
    }
    close(output[0]);
    if (server->pid > 0)
        waitpid(server->pid, NULL, 0);
    return 0;
}

/* Takes a complete line of the server's. */
static void take(struct server *server, char *line) {
    char rest;
    line[strcspn(line, "\r")] = 0;
    if (!server->has_line && !strncmp(line, "distant://:", 11)) {
        server->has_line =
            sscanf(line, "distant://:%64[0-9a-f]@%63[0-9.]:%d%c", server->key, server->host,
                   &server->port, &rest) == 3 ||
            sscanf(line, "distant://:%64[0-9a-f]@[%63[0-9a-f:.]]:%d%c", server->key, server->host,
                   &server->port, &rest) == 3;
        server->has_line &= strlen(server->key) == 64;
    } else if (!strcmp(line, "distant-server proof=1")) {
        server->can_prove = 1;
    } else if (*line) {
        memmove(server->words[1], server->words[0], sizeof server->words - sizeof *server->words);
        snprintf(server->words[0], sizeof *server->words, "%.199s", line);
    }
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Reads until the server has said how it is reached, and what else it says right after that. */
static distant_status listen_to(struct server *server, int cancel) {
    char line[512];
    size_t length = 0;
    long long until = now_ms() + START_LIMIT_MS;
    while (!server->can_prove) {
        struct pollfd ready[] = {{server->output, POLLIN, 0}, {cancel, POLLIN, 0}};
        long long left = until - now_ms();
        int count = poll(ready, 2, left > 0 ? (int)left : 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (ready[1].revents)
            return DISTANT_CANCELLED;
        char byte;
        if (count <= 0 || read(server->output, &byte, 1) != 1)
            break;
        if (byte != '\n') {
            if (length < sizeof line - 1)
                line[length++] = byte;
            continue;
        }
        line[length] = 0;
        length = 0;
        int had_line = server->has_line;
        take(server, line);
        explicit_bzero(line, sizeof line);
        if (server->has_line && !had_line)
            until = now_ms() + PROOF_LIMIT_MS;
    }
    return server->has_line ? DISTANT_OK : DISTANT_FAILED;
}

/* Returns when the server has ended or nobody wants it any more; drops what it prints. */
static void stay(const struct server *server, int cancel) {
    char dropped[4096];
    for (;;) {
        struct pollfd ready[] = {{server->output, POLLIN, 0}, {cancel, POLLIN, 0}};
        if (poll(ready, 2, -1) < 0) {
            if (errno != EINTR)
                return;
        } else if (ready[1].revents || read(server->output, dropped, sizeof dropped) <= 0) {
            return;
        }
    }
}

static void end(const struct server *server) {
    kill(server->pid, SIGKILL);
    while (waitpid(server->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    close(server->output);
}

/* ---- the launch ---------------------------------------------------------------------------- */

/* Offers the server until the host is connected to it, or says that it never will be. */
static distant_status offer(const distant_caller *caller, const struct server *server) {
    const char *host = server->host;
    distant_text reply = {NULL, 0};
    distant_status status;
    char *verdict = NULL, *reason;
    text message = {NULL, 0, 0};
    /* It listens on all addresses, and this machine is the host's own. */
    if (!strcmp(host, "0.0.0.0"))
        host = "127.0.0.1";
    else if (!strcmp(host, "::"))
        host = "::1";
    text_add(&message, "{\"type\":\"offer\",\"id\":1,\"host\":\"%s\",\"port\":%d,\"key\":\"%s\"",
             host, server->port, server->key);
    text_add(&message, ",\"pid\":%ld,\"proof\":%s}", (long)server->pid,
             server->can_prove ? "true" : "false");
    do {
        free(verdict);
        status = say(caller, &message, &reply);
        json answer = {reply.ptr, reply.ptr + reply.len};
        verdict = status == DISTANT_OK ? member(answer, "verdict") : NULL;
    } while (verdict && !strcmp(verdict, "slow"));
    text_wipe(&message);
    if (status == DISTANT_OK && (!verdict || strcmp(verdict, "connected"))) {
        json answer = {reply.ptr, reply.ptr + reply.len};
        reason = member(answer, "reason");
        status = fail(caller, "port_unreachable", "the server cannot be reached", NULL, reason, NULL);
        free(reason);
    }
    free(verdict);
    return status;
}

static distant_status not_started(const distant_caller *caller, const struct plan *plan,
                                  const struct failure *failure) {
    const char *why = strerror(failure->error);
    switch (failure->what) {
    case NO_ROOT:
        if (failure->error == EPERM)
            return fail(caller, "other", "this manager may not enter `%s`", plan->root, why,
                        "a manager that root runs may");
        return fail(caller, "unresolved", "there is no root folder `%s`", plan->root, why,
                    "the host names a folder in /srv/chroot, or in another one by `--options folder=`");
    case NO_USER:
        return fail(caller, "authentication", "it is not possible to become `%s` in there",
                    plan->user, why, NULL);
    default:
        return fail(caller, "server_not_found", "`%s` cannot be run in there", plan->program, why,
                    "install distant inside of the root folder, or name it with `--distant <PATH>`");
    }
}

static distant_status launch(const distant_caller *caller, distant_text request) {
    struct plan plan = {0};
    struct server server = {0};
    struct failure failure;
    int cancel = caller->cancel_fd(caller->context);
    distant_status status;

    read_request(request, &plan);
    progress(caller, "start");
    if (!plan.root) {
        status = fail(caller, "plugin", "the request has no destination", NULL, NULL, NULL);
    } else if (!start(&plan, &server, &failure)) {
        status = not_started(caller, &plan, &failure);
    } else {
        status = listen_to(&server, cancel);
        if (status == DISTANT_FAILED) {
            const char *last[WORDS];
            for (size_t index = 0; index < WORDS; index++)
                last[index] = server.words[WORDS - 1 - index];
            fail_because(caller, "server_not_started", "no server started in `%s`", plan.root, last,
                         WORDS, "see what `distant server listen` says in there");
        }
        if (status == DISTANT_OK) {
            progress(caller, "offer");
            status = offer(caller, &server);
        }
        explicit_bzero(server.key, sizeof server.key);
        if (status == DISTANT_OK)
            stay(&server, cancel);
        end(&server);
    }
    forget(&plan);
    return status;
}

const distant_plugin *distant_plugin_v1(void) {
    static const distant_plugin plugin = {
        DISTANT_PLUGIN_MAGIC,   DISTANT_ABI_MAJOR, DISTANT_ABI_MINOR,
        sizeof(distant_plugin), {MANIFEST, sizeof(MANIFEST) - 1}, launch};
    return &plugin;
}
