/*
 * distant_plugin.h - what a plugin for the distant launcher host exports, in C.
 *
 * A plugin is a shared library `libdistant_plugin_NAME.so` (`.dylib`) with one symbol,
 * `distant_plugin_v1`. It returns a table: a manifest, and the function that runs a launch.
 * The host loads it in a process of its own, once for each launch; a crash ends that launch only.
 *
 *     static const char MANIFEST[] =
 *         "{\"name\":\"mine\",\"version\":\"1.0\",\"schemes\":[\"mine\"],\"options\":["
 *         "{\"name\":\"user\",\"type\":\"string\",\"help\":\"whom to log in as\"}]}";
 *
 *     static distant_status launch(const distant_caller *caller, distant_text request);
 *
 *     DISTANT_PLUGIN_EXPORT const distant_plugin *distant_plugin_v1(void) {
 *         static const distant_plugin plugin = {
 *             DISTANT_PLUGIN_MAGIC, DISTANT_ABI_MAJOR, DISTANT_ABI_MINOR, sizeof(distant_plugin),
 *             {MANIFEST, sizeof(MANIFEST) - 1}, launch};
 *         return &plugin;
 *     }
 *
 * Everything else is JSON, one object a message, at most 1 MiB, with a `type`. Members that you do
 * not know are to be ignored; leave out what you do not need.
 *
 * `launch` is called once, on a thread of its own, with
 *
 *     {"destination": "mine://me@box:22",            the text form, with a password if it has one
 *      "options": {"user": "me"},                    checked against the manifest, defaults filled in
 *      "server": {"program": "/usr/bin/distant",     null: look where one usually is
 *                 "args": ["--shutdown", "after=60"],
 *                 "bind": "ssh"},                    or "any", or an address
 *      "interactive": true,                          whether somebody is there to be asked
 *      "environment": {"SSH_AUTH_SOCK": "..."},      of the client, as far as set
 *      "cwd": "/home/me"}                            of the client; may be null
 *
 * It starts `PROGRAM server listen ...`, reads the server's connect line
 * (`distant://:KEY@ADDRESS:PORT`), sends an `offer` and waits for the verdict. Until the verdict is
 * `connected` it holds on to everything and, if anything fails, kills the server. It may stay in
 * the call for as long as it must hold something that the connection needs. These messages it sends:
 *
 *     {"type":"offer","id":1,"host":"10.0.0.7","port":8080,"key":"64 hexadecimal digits"}
 *         may have "pid":NUMBER, "proof":true (the server printed `distant-server proof=1`),
 *         "via":"tunnel" (needs this process). Answered:
 *         {"type":"verdict","id":1,"verdict":"connected"}
 *         {"type":"verdict","id":1,"verdict":"slow"}     still trying: offer another way under
 *                 another id, or send the same offer again to wait for its next verdict
 *         {"type":"verdict","id":1,"verdict":"unreachable","reason":"..."}
 *         {"type":"verdict","id":1,"verdict":"refused","reason":"..."}
 *     {"type":"ask","id":2,"challenge":{"questions":[{"text":"Password: ","echo":false}]}}
 *         answered: {"type":"answer","id":2,"answers":["..."]}, or "cancelled":true
 *     {"type":"ask","id":3,"verification":{"kind":"host","text":"Trust this host?"}}
 *         answered: {"type":"answer","id":3,"valid":true}, or "cancelled":true
 *     {"type":"notice","text":"Welcome"}                 for the person to read
 *     {"type":"progress","stage":"connect"}              allocate, resolve, connect, host_key,
 *                                                        authenticate, probe, upload, start or offer
 *     {"type":"log","level":"debug","target":"mine","text":"..."}
 *     {"type":"error","kind":"unreachable","message":"...","causes":["..."],"hint":"..."}
 *         the last message of a launch that failed. Kinds: invalid_option, unresolved,
 *         unreachable, host_key, authentication, server_not_found, server_not_started,
 *         port_unreachable, timed_out, cancelled, plugin, other
 *
 * What the library prints goes to the log; standard input is empty. No exception and no longjmp
 * may leave `launch` or pass through a function of the host's.
 */
#ifndef DISTANT_PLUGIN_H
#define DISTANT_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* First member of every distant_plugin: `distantp` in ASCII. */
#define DISTANT_PLUGIN_MAGIC UINT64_C(0x64697374616e7470)
/* Changes only together with the name of distant_plugin_v1. */
#define DISTANT_ABI_MAJOR UINT32_C(1)
/* Counts the members appended to the tables. 1: distant_caller.log_level. */
#define DISTANT_ABI_MINOR UINT32_C(1)
/* Most bytes of one message. */
#define DISTANT_MESSAGE_MAX (1024 * 1024)

/* Build with -fvisibility=hidden, so that no other name of the library gets out. */
#define DISTANT_PLUGIN_EXPORT __attribute__((visibility("default")))

/* UTF-8 that somebody else owns: no terminating NUL, nobody frees it. */
typedef struct distant_text {
    const char *ptr; /* may be null where len is 0 */
    size_t len;
} distant_text;

/* How a call over the boundary ended. Any other number means DISTANT_FAILED. */
typedef int32_t distant_status;
#define DISTANT_OK 0
/* A `launch` has said why with an `error` message. */
#define DISTANT_FAILED 1
/* Nobody wants the launch any more: kill the server, let go of everything, return. */
#define DISTANT_CANCELLED 2
/* The other side's table, text or message makes no sense. */
#define DISTANT_MALFORMED 3

/*
 * What the host gives to `launch`. It is valid for as long as the process lives, so a thread that
 * outlives its launch does no harm; it is told DISTANT_CANCELLED. Every function may be called from
 * any thread, several at a time.
 *
 * Tables only grow at the end: read a member behind `cancel_fd` only if struct_size covers it, as
 * DISTANT_HAS(caller, log_level) tells.
 */
typedef struct distant_caller {
    size_t struct_size;
    /* To be given to each function. */
    void *context;
    /*
     * Sends a message. After an `ask` or an `offer` it waits for the answer and puts it into
     * *reply; `reply` may be null where no answer is due. The reply is borrowed: it is valid until
     * the same thread calls `send` again, or ends.
     */
    distant_status (*send)(void *context, distant_text message, distant_text *reply);
    /* Returns 1 once nobody wants the launch any more, else 0. */
    int32_t (*is_cancelled)(void *context);
    /*
     * Returns a file descriptor that becomes readable, and stays so, when the launch is cancelled:
     * for poll() beside one's own. Neither read nor close it.
     */
    int32_t (*cancel_fd)(void *context);
    /*
     * What the host keeps of the plugin's log: 0 nothing, 1 errors, 2 warnings, 3 information,
     * 4 details, 5 everything. Since minor 1.
     */
    uint32_t log_level;
} distant_caller;

/* What a plugin gives to the host. It and its manifest stay as they are for good. */
typedef struct distant_plugin {
    uint64_t magic;       /* DISTANT_PLUGIN_MAGIC */
    uint32_t abi_major;   /* DISTANT_ABI_MAJOR */
    uint32_t abi_minor;   /* DISTANT_ABI_MINOR */
    size_t struct_size;   /* sizeof(distant_plugin) */
    distant_text manifest; /* JSON: name, version, description, schemes, options */
    /*
     * Runs one launch to its end. `request` is valid until it returns. DISTANT_OK: all is done.
     * DISTANT_FAILED: an `error` has been sent. DISTANT_CANCELLED: nobody wanted it any more.
     */
    distant_status (*launch)(const distant_caller *caller, distant_text request);
} distant_plugin;

/* Whether the table behind a pointer, as the other side built it, has a member. */
#define DISTANT_HAS(table, member)                                                                 \
    ((table)->struct_size >=                                                                       \
     (size_t)((const char *)(&(table)->member + 1) - (const char *)(table)))

/* The one symbol that a plugin exports. Returns the same table each time. */
DISTANT_PLUGIN_EXPORT const distant_plugin *distant_plugin_v1(void);

#ifdef __cplusplus
}
#endif

#endif
