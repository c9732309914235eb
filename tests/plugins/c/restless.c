/*
 * Plugins that do more than they may while they are loaded, or look where they should not: one for
 * each VARIANT_… of the compiler's command line. The conformance kit finds each of them.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "distant_plugin.h"

static distant_status launch(const distant_caller *caller, distant_text request) {
    static const char NOTICE[] = "{\"type\":\"notice\",\"text\":\"behind the end\"}";
    distant_text notice = {NOTICE, sizeof(NOTICE) - 1};
    (void)request;
#ifdef VARIANT_LOOKS_BEHIND
    /* Takes a longer table for one whose next member it knows. */
    if (caller->struct_size > sizeof(distant_caller)) {
        distant_status (*next)(void *) = *(distant_status (**)(void *))(caller + 1);
        return next(caller->context);
    }
#endif
#ifdef VARIANT_LOGS_ALL
    static const char LOG[] = "{\"type\":\"log\",\"level\":\"trace\",\"text\":\"a secret of mine\"}";
    distant_text log = {LOG, sizeof(LOG) - 1};
    /* Without DISTANT_HAS(caller, log_level). */
    if (caller->log_level >= 5)
        caller->send(caller->context, log, NULL);
#endif
    return caller->send(caller->context, notice, NULL);
}

static distant_plugin plugin = {
    DISTANT_PLUGIN_MAGIC, DISTANT_ABI_MAJOR, DISTANT_ABI_MINOR, sizeof(distant_plugin),
    {"{\"name\":\"restless\",\"schemes\":[\"restless\"]}", 42}, launch};

#ifdef VARIANT_EXPORTS
DISTANT_PLUGIN_EXPORT int inflate(int);
int inflate(int x) {
    return x;
}
#endif

#ifdef VARIANT_THREAD
static void *wait_for_ever(void *unused) {
    for (;;)
        pause();
    return unused;
}
#endif

__attribute__((constructor)) static void load(void) {
#ifdef VARIANT_THREAD
    pthread_t thread;
    pthread_create(&thread, NULL, wait_for_ever, NULL);
#endif
#ifdef VARIANT_DESCRIPTOR
    if (open("/etc/passwd", O_RDONLY) < 0)
        _exit(1);
#endif
#ifdef VARIANT_OUTPUT
    puts("hello, it is me");
    fflush(stdout);
#endif
#ifdef VARIANT_NETWORK
    close(socket(AF_INET, SOCK_STREAM, 0));
#endif
#ifdef VARIANT_SLOW
    usleep(300 * 1000);
#endif
}

const distant_plugin *distant_plugin_v1(void) {
#ifdef VARIANT_CHANGES
    static distant_plugin other;
    static int calls;
    if (calls++) {
        other = plugin;
        return &other;
    }
#endif
    return &plugin;
}
