/*
 * A whole plugin in C alone: `program://…` starts the server on this machine.
 *
 * It runs `PROGRAM server listen`, offers what the connect line says and stays until the launch is
 * cancelled, as the server is its child. It needs nothing but this header and a C library.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "distant_plugin.h"

static const char MANIFEST[] =
    "{\"name\":\"program\",\"version\":\"1.0\",\"description\":\"starts a server here, in C\","
    "\"schemes\":[\"program\"]}";

/* ---- as much JSON as a launch needs -------------------------------------------------------- */

struct json {
    const char *at, *end;
};

static void skip_space(struct json *json) {
    while (json->at < json->end && strchr(" \t\r\n", *json->at))
        json->at++;
}

/* Steps over one value, and over a comma or colon behind it. */
static void skip_value(struct json *json) {
    int depth = 0, quoted = 0;
    for (; json->at < json->end; json->at++) {
        char c = *json->at;
        if (quoted) {
            if (c == '\\')
                json->at++;
            else if (c == '"')
                quoted = 0;
        } else if (c == '"') {
            quoted = 1;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (depth-- == 0)
                return;
        } else if (depth == 0 && (c == ',' || c == ':')) {
            json->at++;
            return;
        }
    }
}

/* Finds the value of a member of the object at `json`; 0 if there is none. */
static int find(struct json *json, const char *name) {
    size_t length = strlen(name);
    skip_space(json);
    if (json->at == json->end || *json->at++ != '{')
        return 0;
    for (;;) {
        skip_space(json);
        if (json->at == json->end || *json->at != '"')
            return 0;
        int found = (size_t)(json->end - json->at) > length + 2 &&
                    !memcmp(json->at + 1, name, length) && json->at[length + 1] == '"';
        skip_value(json);
        skip_space(json);
        if (found)
            return json->at < json->end;
        skip_value(json);
    }
}

/* Copies the string at `json`, the two escapes undone that a path may need; NULL if it is none. */
static char *read_string(struct json *json) {
    char *text = malloc((size_t)(json->end - json->at) + 1), *to = text;
    skip_space(json);
    if (!text || json->at == json->end || *json->at != '"') {
        free(text);
        return NULL;
    }
    for (json->at++; json->at < json->end && *json->at != '"'; json->at++) {
        if (*json->at == '\\' && json->end - json->at > 1)
            json->at++;
        *to++ = *json->at;
    }
    json->at += json->at < json->end;
    *to = 0;
    return text;
}

/* ---- messages ------------------------------------------------------------------------------ */

static distant_status send_text(const distant_caller *caller, const char *text, distant_text *reply) {
    distant_text message = {text, strlen(text)};
    return caller->send(caller->context, message, reply);
}

static distant_status fail(const distant_caller *caller, const char *kind, const char *what) {
    char text[512];
    snprintf(text, sizeof text, "{\"type\":\"error\",\"kind\":\"%s\",\"message\":\"%s\"}", kind, what);
    send_text(caller, text, NULL);
    return DISTANT_FAILED;
}

static int says(distant_text reply, const char *verdict) {
    struct json json = {reply.ptr, reply.ptr + reply.len};
    char *text = find(&json, "verdict") ? read_string(&json) : NULL;
    int same = text && !strcmp(text, verdict);
    free(text);
    return same;
}

/* ---- the server ---------------------------------------------------------------------------- */

static pid_t start(char *const arguments[], int *output) {
    int ends[2];
    pid_t parent = getpid(), child;
    if (pipe(ends))
        return -1;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    child = fork();
    if (child == 0) {
#ifdef __linux__
        /* The thread that launches lives as long as the launch, so the server ends with it. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        if (getppid() == parent && dup2(ends[1], 1) == 1) {
            close(ends[1]);
            execv(arguments[0], arguments);
        }
        _exit(127);
    }
    close(ends[1]);
    if (child < 0)
        close(ends[0]);
    else
        *output = ends[0];
    return child;
}

/* Reads up to the end of the connect line. 0: found. Else the launch is over. */
static int read_connect_line(int output, int cancel, char key[65], char host[64], int *port) {
    char line[512];
    size_t length = 0;
    for (;;) {
        struct pollfd ready[] = {{output, POLLIN, 0}, {cancel, POLLIN, 0}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            return DISTANT_FAILED;
        if (ready[1].revents)
            return DISTANT_CANCELLED;
        if (!ready[0].revents)
            continue;
        char byte;
        if (read(output, &byte, 1) != 1)
            return DISTANT_FAILED;
        if (byte == '\n') {
            char rest;
            line[length] = 0;
            length = 0;
            if (sscanf(line, "distant://:%64[0-9a-f]@%63[0-9.]:%d%c", key, host, port, &rest) == 3 &&
                strlen(key) == 64)
                return DISTANT_OK;
        } else if (length < sizeof line - 1) {
            line[length++] = byte;
        }
    }
}

static distant_status offer(const distant_caller *caller, pid_t server, const char *key,
                            const char *host, int port) {
    char text[512];
    distant_text reply = {NULL, 0};
    distant_status status;
    snprintf(text, sizeof text,
             "{\"type\":\"offer\",\"id\":1,\"host\":\"%s\",\"port\":%d,\"key\":\"%s\",\"pid\":%ld}",
             host, port, key, (long)server);
    do
        status = send_text(caller, text, &reply);
    while (status == DISTANT_OK && says(reply, "slow"));
    if (status != DISTANT_OK)
        return status;
    if (!says(reply, "connected"))
        return fail(caller, "port_unreachable", "the server cannot be reached");
    return DISTANT_OK;
}

/* Returns when the server has ended or the launch is cancelled; drops what the server prints. */
static void stay(int output, int cancel) {
    char dropped[512];
    for (;;) {
        struct pollfd ready[] = {{output, POLLIN, 0}, {cancel, POLLIN, 0}};
        if (poll(ready, 2, -1) < 0) {
            if (errno != EINTR)
                return;
        } else if (ready[1].revents || read(output, dropped, sizeof dropped) <= 0) {
            return;
        }
    }
}

static distant_status launch(const distant_caller *caller, distant_text request) {
    struct json json = {request.ptr, request.ptr + request.len};
    char *program = find(&json, "server") && find(&json, "program") ? read_string(&json) : NULL;
    char key[65], host[64];
    int port, output, cancel = caller->cancel_fd(caller->context);
    distant_status status;
    pid_t server;

    if (!program)
        return fail(caller, "server_not_found", "the request names no program");
    send_text(caller, "{\"type\":\"progress\",\"stage\":\"start\"}", NULL);
    char *arguments[] = {program, "server", "listen", "--host", "127.0.0.1", NULL};
    server = start(arguments, &output);
    free(program);
    if (server < 0)
        return fail(caller, "server_not_started", "no process can be started");

    status = read_connect_line(output, cancel, key, host, &port);
    if (status == DISTANT_FAILED)
        fail(caller, "server_not_started", "the server ended without a connect line");
    if (status == DISTANT_OK)
        status = offer(caller, server, key, host, port);
    if (status == DISTANT_OK)
        stay(output, cancel);
    kill(server, SIGKILL);
    while (waitpid(server, NULL, 0) < 0 && errno == EINTR)
        ;
    close(output);
    return status;
}

const distant_plugin *distant_plugin_v1(void) {
    static const distant_plugin plugin = {
        DISTANT_PLUGIN_MAGIC,  DISTANT_ABI_MAJOR, DISTANT_ABI_MINOR,
        sizeof(distant_plugin), {MANIFEST, sizeof(MANIFEST) - 1}, launch};
    return &plugin;
}
