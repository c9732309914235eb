/*
 * As much JSON as a plugin needs: looking into a message, and writing one.
 *
 * Nothing is copied until a string is read. A text that is cut short or is no JSON finds nothing;
 * no function reads behind its end.
 */
#ifndef JSON_H
#define JSON_H

#include <stddef.h>

/* A value: it begins, after blanks, at `at`. */
typedef struct json {
    const char *at, *end;
} json;

/* Finds a member of an object. Returns 0 if this is no object or has none of that name. */
int json_member(json object, const char *name, json *value);

/* Finds an item of an array, the first one being 0. Returns 0 if there is none. */
int json_item(json array, size_t index, json *value);

/* Reads a string, to be freed. Returns NULL if it is none, or none that C can hold. */
char *json_string(json value);

/* A text that grows. Start with {NULL, 0, 0}; end with text_wipe. */
typedef struct text {
    char *ptr;
    size_t length, room;
} text;

/* Appends a printed piece of JSON, such as a number or the names around it. */
void text_add(text *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Appends a string as JSON, quotes included. What is no UTF-8 becomes a question mark. */
void text_quote(text *to, const char *string);

/* Forgets the text, of which nothing stays in memory. */
void text_wipe(text *it);

#endif
