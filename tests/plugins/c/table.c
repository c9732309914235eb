/*
 * Plugins whose table is unusual or wrong: one for each VARIANT_… that is defined on the compiler's
 * command line. The usual ones launch by sending a notice.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "distant_plugin.h"

#define TEXT(literal) {(literal), sizeof(literal) - 1}

__attribute__((unused)) static distant_status launch(const distant_caller *caller, distant_text request) {
    static const distant_text notice = TEXT("{\"type\":\"notice\",\"text\":\"launched\"}");
    (void)request;
#ifdef VARIANT_EXIT
    exit(0);
#endif
#ifdef VARIANT_NULL_CONTEXT
    caller->send(NULL, notice, NULL);
#endif
#ifdef VARIANT_NULL_MESSAGE
    distant_text nothing = {NULL, 5};
    return caller->send(caller->context, nothing, NULL);
#endif
    return caller->send(caller->context, notice, NULL);
}

#ifdef VARIANT_CONSTRUCTOR_HANG
__attribute__((constructor)) static void hang(void) {
    for (;;)
        pause();
}
#endif

#ifdef VARIANT_CONSTRUCTOR_CRASH
__attribute__((constructor)) static void crash(void) {
    *(volatile char *)64 = 1;
}
#endif

/* The table of this header's version, with what a later one may have behind it. */
static const struct {
    distant_plugin table;
    unsigned char behind[64];
} plugin = {
    {
#ifdef VARIANT_MAGIC
        UINT64_C(0x1234),
#else
        DISTANT_PLUGIN_MAGIC,
#endif
#ifdef VARIANT_MAJOR
        DISTANT_ABI_MAJOR + 1,
#else
        DISTANT_ABI_MAJOR,
#endif
#if defined(VARIANT_MINOR_BEFORE)
        DISTANT_ABI_MINOR - 1, offsetof(distant_plugin, launch) + sizeof(void *),
#elif defined(VARIANT_MINOR_AFTER)
        DISTANT_ABI_MINOR + 1, sizeof plugin,
#elif defined(VARIANT_TRUNCATED)
        DISTANT_ABI_MINOR, offsetof(distant_plugin, launch),
#else
        DISTANT_ABI_MINOR, sizeof(distant_plugin),
#endif
#if defined(VARIANT_NOT_UTF8)
        TEXT("{\"name\":\"\xff\",\"schemes\":[\"c\"]}"),
#elif defined(VARIANT_HUGE_LENGTH)
        {"{}", (size_t)1 << 30},
#elif defined(VARIANT_NULL_MANIFEST)
        {NULL, 40},
#elif defined(VARIANT_BAD_MANIFEST)
        TEXT("name: c"),
#else
        TEXT("{\"name\":\"c\",\"schemes\":[\"c\"]}"),
#endif
#ifdef VARIANT_NULL_LAUNCH
        NULL,
#else
        launch,
#endif
    },
    /* Poison: whoever follows an address made of this crashes. */
    {0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5},
};

#ifdef VARIANT_NO_SYMBOL
DISTANT_PLUGIN_EXPORT const distant_plugin *something_else(void);
#define distant_plugin_v1 something_else
#endif

const distant_plugin *distant_plugin_v1(void) {
#ifdef VARIANT_NULL_TABLE
    (void)plugin;
    return NULL;
#else
    return &plugin.table;
#endif
}
