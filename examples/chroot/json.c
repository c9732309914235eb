#define _DEFAULT_SOURCE
#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ------------------------------------------------------------------------------- */

static void skip_blanks(json *it) {
    while (it->at < it->end && *it->at && strchr(" \t\r\n", *it->at))
        it->at++;
}

/* Steps over one value and the comma or colon behind it. */
static void skip_value(json *it) {
    size_t depth = 0;
    int quoted = 0;
    for (; it->at < it->end; it->at++) {
        char c = *it->at;
        if (quoted) {
            if (c == '\\' && it->end - it->at > 1)
                it->at++;
            else if (c == '"')
                quoted = 0;
        } else if (c == '"') {
            quoted = 1;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (depth == 0)
                return;
            depth--;
        } else if (depth == 0 && (c == ',' || c == ':')) {
            it->at++;
            return;
        }
    }
}

/* Steps into an object or array; 0 if this is none. */
static int enter(json *it, char bracket) {
    skip_blanks(it);
    if (it->at == it->end || *it->at != bracket)
        return 0;
    it->at++;
    return 1;
}

/* Whether there is one more member or item. */
static int has_more(json *it) {
    skip_blanks(it);
    return it->at < it->end && *it->at != '}' && *it->at != ']';
}

int json_member(json object, const char *name, json *value) {
    if (!enter(&object, '{'))
        return 0;
    while (has_more(&object)) {
        char *found = json_string(object);
        int same = found && !strcmp(found, name);
        free(found);
        skip_value(&object);
        if (same) {
            *value = object;
            return has_more(&object);
        }
        skip_value(&object);
    }
    return 0;
}

int json_item(json array, size_t index, json *value) {
    if (!enter(&array, '['))
        return 0;
    for (; has_more(&array); index--) {
        if (index == 0) {
            *value = array;
            return 1;
        }
        skip_value(&array);
    }
    return 0;
}

/* Reads four hexadecimal digits; -1 if they are none. */
static long hexadecimal(json *it) {
    char digits[5] = {0};
    if (it->end - it->at < 4)
        return -1;
    memcpy(digits, it->at, 4);
    if (strspn(digits, "0123456789abcdefABCDEF") != 4)
        return -1;
    it->at += 4;
    return strtol(digits, NULL, 16);
}

/* Reads what follows a backslash and a `u`, which may be half of a pair; -1 if it makes no sense. */
static long code_point(json *it) {
    long high = hexadecimal(it), low;
    if (high < 0xd800 || high > 0xdfff)
        return high;
    if (high > 0xdbff || it->end - it->at < 2 || it->at[0] != '\\' || it->at[1] != 'u')
        return -1;
    it->at += 2;
    low = hexadecimal(it);
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

static char *put_utf8(char *to, long code) {
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
    } else {
        if (code < 0x10000) {
            *to++ = (char)(0xe0 | code >> 12);
        } else {
            *to++ = (char)(0xf0 | code >> 18);
            *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        }
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (code & 0x3f));
    return to;
}

char *json_string(json value) {
    static const char PLAIN[] = "\"\\/bfnrt", MEANT[] = "\"\\/\b\f\n\r\t";
    if (!enter(&value, '"'))
        return NULL;
    /* Each escape is longer than what it stands for. */
    char *string = malloc((size_t)(value.end - value.at) + 1), *to = string;
    while (string && value.at < value.end) {
        char c = *value.at++;
        if (c == '"') {
            *to = 0;
            return string;
        }
        if (c == '\\' && value.at < value.end) {
            char escape = *value.at++;
            const char *plain = escape ? strchr(PLAIN, escape) : NULL;
            long code = plain ? MEANT[plain - PLAIN] : escape == 'u' ? code_point(&value) : -1;
            if (code <= 0)
                break;
            to = put_utf8(to, code);
        } else if (c == 0) {
            break;
        } else {
            *to++ = c;
        }
    }
    free(string);
    return NULL;
}

/* ---- writing ------------------------------------------------------------------------------- */

static void make_room(text *it, size_t more) {
    size_t room = it->length + more + 1;
    if (room <= it->room)
        return;
    /* Not realloc: it may leave a copy behind, and a key may be in it. */
    char *grown = malloc(room *= 2);
    if (!grown)
        abort(); /* which ends this launch, and nothing else */
    if (it->ptr)
        memcpy(grown, it->ptr, it->length);
    text old = *it;
    it->ptr = grown;
    it->room = room;
    text_wipe(&old);
}

void text_add(text *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    make_room(to, (size_t)length);
    va_start(arguments, format);
    vsnprintf(to->ptr + to->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    to->length += (size_t)length;
}

/* How many bytes a character of UTF-8 has; 0 if this is none. */
static size_t width(const unsigned char *at) {
    size_t length = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (at[0] > 0xf4 || (at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
        (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    for (size_t index = 1; index < length; index++)
        if ((at[index] & 0xc0) != 0x80)
            return 0;
    return length;
}

void text_quote(text *to, const char *string) {
    const unsigned char *at = (const unsigned char *)string;
    text_add(to, "\"");
    while (*at) {
        size_t length = width(at);
        if (*at == '"' || *at == '\\')
            text_add(to, "\\%c", *at);
        else if (*at < 0x20 || *at == 0x7f)
            text_add(to, "\\u%04x", *at);
        else if (length)
            text_add(to, "%.*s", (int)length, (const char *)at);
        else
            text_add(to, "?");
        at += length ? length : 1;
    }
    text_add(to, "\"");
}

void text_wipe(text *it) {
    if (it->ptr)
        explicit_bzero(it->ptr, it->room);
    free(it->ptr);
    it->ptr = NULL;
    it->length = it->room = 0;
}
