/*
 * A plugin that means harm: what `variant` says in its options. Each ends its own launch and
 * nothing else.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "distant_plugin.h"

#define TEXT(literal) {(literal), sizeof(literal) - 1}

static const char MANIFEST[] =
    "{\"name\":\"hostile\",\"schemes\":[\"hostile\"],"
    "\"options\":[{\"name\":\"variant\",\"type\":\"string\"}]}";

static const distant_caller *host;

static distant_status say(const char *text) {
    distant_text message = {text, strlen(text)};
    return host->send(host->context, message, NULL);
}

static distant_status done_with(const char *text) {
    say(text);
    return DISTANT_FAILED;
}

#ifdef VARIANT_SECOND
#define WORD "the second version"
#else
#define WORD "still here"
#endif

/* What a good plugin says when it cannot go on. */
static distant_status sorry(void) {
    return done_with("{\"type\":\"error\",\"kind\":\"other\",\"message\":\"" WORD "\"}");
}

static volatile int depth;

/* The compiler must not see that it never ends. */
static int __attribute__((noinline)) recurse(int level) {
    volatile char room[4096];
    room[0] = (char)level;
    depth = level;
    return level < 0 ? room[0] : recurse(level + 1) + room[0];
}

static void *late(void *unused) {
    (void)unused;
    for (;;)
        say("{\"type\":\"notice\",\"text\":\"late\"}");
    return NULL;
}

static distant_status launch(const distant_caller *caller, distant_text request) {
    char text[4096] = "";
    host = caller;
    memcpy(text, request.ptr, request.len < sizeof text ? request.len : sizeof text - 1);
#define IS(name) strstr(text, "\"variant\":\"" name "\"")
    if (IS("asks")) {
        static const distant_text question =
            TEXT("{\"type\":\"ask\",\"id\":1,\"verification\":{\"kind\":\"host\",\"text\":\"Sure?\"}}");
        distant_text answer;
        host->send(host->context, question, &answer);
        return sorry();
    }
    if (IS("no_result"))
        return DISTANT_FAILED;
    if (IS("odd_status"))
        return 77;
    if (IS("two_results")) {
        sorry();
        return done_with("{\"type\":\"done\"}");
    }
    if (IS("late_callbacks")) {
        /* Not before: as long as the result is not out, it would be endless notices instead. */
        distant_status status = sorry();
        pthread_t thread;
        pthread_create(&thread, NULL, late, NULL);
        return status;
    }
    if (IS("no_json"))
        return done_with("{\"type\":");
    if (IS("not_utf8"))
        return done_with("{\"type\":\"notice\",\"text\":\"\xff\"}");
    if (IS("huge")) {
        distant_text message = {"x", (size_t)1 << 30};
        return caller->send(caller->context, message, NULL);
    }
    if (IS("exit"))
        exit(0);
    if (IS("segv"))
        *(volatile int *)64 = 1;
    if (IS("overflow"))
        return recurse(1);
    if (IS("abort"))
        abort();
    if (IS("hang"))
        for (;;)
            pause();
    if (IS("spin"))
        for (;;)
            depth++;
    if (IS("deaf")) {
        /* Neither asked nor told to end. */
        signal(SIGTERM, SIG_IGN);
        for (;;)
            pause();
    }
    if (IS("noise")) {
        for (int line = 0; line < 200000; line++)
            puts("ten megabytes of noise, fifty bytes to the line ....");
        return sorry();
    }
    if (IS("close")) {
        for (int number = 0; number < 64; number++)
            close(number);
        return sorry();
    }
    if (IS("fork")) {
        if (fork() == 0) {
            execlp("sleep", "sleep", "300", (char *)NULL);
            _exit(127);
        }
        return sorry();
    }
    if (IS("surroundings")) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
        umask(0);
        if (chdir("/"))
            abort();
        return sorry();
    }
    return sorry();
}

const distant_plugin *distant_plugin_v1(void) {
    static const distant_plugin plugin = {
        DISTANT_PLUGIN_MAGIC, DISTANT_ABI_MAJOR, DISTANT_ABI_MINOR, sizeof(distant_plugin),
        {MANIFEST, sizeof(MANIFEST) - 1}, launch};
    return &plugin;
}
