/*
 * The tests of the plugin for `chroot://`: its JSON, what it makes of a request, and launches by a
 * host that is played here. They need no root, so their root folder is `/`.
 */
#include "chroot.c"

#include <assert.h>

static char *decoded(const char *literal) {
    json value = {literal, literal + strlen(literal)};
    return json_string(value);
}

static void check_string(const char *literal, const char *expected) {
    char *found = decoded(literal);
    assert(!found == !expected && (!found || !strcmp(found, expected)));
    free(found);
}

static void strings_are_read(void) {
    check_string("\"\"", "");
    check_string(" \"a b\\\"\\\\\\/\\n\\t\"", "a b\"\\/\n\t");
    check_string("\"\\u00e4\\u20ac\\ud83d\\ude00\"", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80");
    check_string("\"cut short", NULL);
    check_string("\"cut\\", NULL);
    check_string("\"\\u12\"", NULL);
    check_string("\"\\ud83d\"", NULL);
    check_string("\"\\ude00\"", NULL);
    check_string("\"a\\u0000b\"", NULL);
    check_string("\"\\q\"", NULL);
    check_string("17", NULL);
    check_string("", NULL);
}

static void members_and_items_are_found(void) {
    const char *words = " { \"a}\" : [1, {\"b\":\"]\"}, \"x,y\"] , \"b\":{\"c\":\"d\"},\"e\":null }";
    for (size_t length = strlen(words); length > 0; length--) {
        /* A copy without anything behind it, so that the sanitizer sees who looks there. */
        char *copy = malloc(length);
        assert(copy);
        memcpy(copy, words, length);
        json whole = {copy, copy + length}, value, item;
        int found = json_member(whole, "b", &value);
        if (length == strlen(words)) {
            char *text;
            assert(found && json_member(value, "c", &item) && (text = json_string(item)));
            assert(!strcmp(text, "d"));
            free(text);
            assert(!json_member(whole, "c", &value) && !json_item(whole, 0, &value));
            assert(json_member(whole, "a}", &value) && json_item(value, 2, &item));
            assert((text = json_string(item)) && !strcmp(text, "x,y"));
            free(text);
            assert(!json_item(value, 3, &item));
        }
        free(copy);
    }
}

static void what_is_written_is_read_back(void) {
    const char *all = "\"\\ \x01\x7f\n\xc3\xa4 \xf0\x9f\x98\x80";
    text quoted = {NULL, 0, 0};
    text_quote(&quoted, all);
    check_string(quoted.ptr, all);
    text_wipe(&quoted);
    text_quote(&quoted, "\xff\xc3(\xed\xa0\x80");
    assert(!strcmp(quoted.ptr, "\"?" "?(?" "?" "?\""));
    text_wipe(&quoted);
}

static void check_request(const char *request, const char *root, const char *user, const char *words) {
    struct plan plan = {0};
    distant_text borrowed = {request, strlen(request)};
    char joined[512] = "";
    read_request(borrowed, &plan);
    assert(plan.root && !strcmp(plan.root, root));
    assert(!plan.user == !user && (!user || !strcmp(plan.user, user)));
    for (char **word = plan.arguments; *word; word++) {
        strcat(joined, *word);
        strcat(joined, "|");
    }
    assert(!strcmp(joined, words));
    forget(&plan);
}

static void requests_are_understood(void) {
    check_request("{\"destination\":\"chroot://sid\"}", "/srv/chroot/sid", NULL,
                  "distant|server|listen|--host|127.0.0.1|");
    check_request("{\"destination\":\"chroot://me:x@sid:9\",\"options\":{\"folder\":\"~/r\"},"
                  "\"environment\":{\"HOME\":\"/home/me\"},\"server\":{\"program\":\"/d\","
                  "\"args\":[\"--shutdown\",\"after=60\"],\"bind\":\"any\"}}",
                  "/home/me//r/sid", "me", "/d|server|listen|--host|any|--shutdown|after=60|");
    check_request("{\"destination\":\"chroot://sid\",\"options\":{\"folder\":\"r\"},\"cwd\":\"/w\"}",
                  "/w/r/sid", NULL, "distant|server|listen|--host|127.0.0.1|");
}

static void a_servers_lines_are_understood(void) {
    struct server server = {0};
    char key[65] = {0}, line[200];
    memset(key, 'a', 64);
    snprintf(line, sizeof line, "distant://:%s@[::1]:8080\r", key);
    take(&server, line);
    assert(server.has_line && server.port == 8080 && !strcmp(server.host, "::1"));
    strcpy(line, "distant-server proof=1");
    take(&server, line);
    assert(server.can_prove);
    memset(&server, 0, sizeof server);
    snprintf(line, sizeof line, "distant://:%s@10.0.0.7:80 or so", key);
    take(&server, line);
    assert(!server.has_line);
}

/* A host that keeps the last message, and answers offers with one verdict. */
struct host {
    char last[1024];
    const char *reply;
    int cancel[2];
};

static distant_status send_to(void *context, distant_text message, distant_text *reply) {
    struct host *host = context;
    snprintf(host->last, sizeof host->last, "%.*s", (int)message.len, message.ptr);
    if (reply) {
        reply->ptr = host->reply;
        reply->len = strlen(host->reply);
    }
    return DISTANT_OK;
}

static int32_t is_cancelled(void *context) {
    (void)context;
    return 0;
}

static int32_t cancel_fd(void *context) {
    return ((struct host *)context)->cancel[0];
}

static void a_launch_that_cannot_be_says_why(void) {
    struct host host = {.reply = ""};
    distant_caller caller = {sizeof caller, &host, send_to, is_cancelled, cancel_fd, 0};
    const distant_plugin *plugin = distant_plugin_v1();
    assert(!pipe(host.cancel));
    const char *request = "{\"destination\":\"chroot://no-such-root\"}";
    distant_text borrowed = {request, strlen(request)};
    assert(plugin->launch(&caller, borrowed) == DISTANT_FAILED);
    json message = {host.last, host.last + strlen(host.last)};
    char *kind = member(message, "kind"), *what = member(message, "message");
    assert(kind && (!strcmp(kind, "unresolved") || !strcmp(kind, "other")));
    assert(what && strstr(what, "`/srv/chroot/no-such-root`"));
    free(kind);
    free(what);
    close(host.cancel[0]);
    close(host.cancel[1]);
    assert(waitpid(-1, NULL, 0) < 0 && errno == ECHILD);
}

int main(void) {
    strings_are_read();
    members_and_items_are_found();
    what_is_written_is_read_back();
    requests_are_understood();
    a_servers_lines_are_understood();
    a_launch_that_cannot_be_says_why();
    puts("all good");
    return 0;
}
