/*
 * A stub of a FIDO token: a middleware library as `SecurityKeyProvider` of OpenSSH names one, with the
 * token itself in software. It signs as a token does, so what ssh and sshd do with it is the real thing;
 * it keeps nothing safe. The handle of a key is its private half.
 *
 * Two files beside the library say how it behaves: `pin` holds the PIN without which no key that wants
 * its user verified signs anything, and `touch` is a pipe, one byte of which is a touch.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The middleware's interface, version 10: see PROTOCOL.u2f of OpenSSH. */
#define VERSION 0x000a0000
#define ED25519 1
#define USER_PRESENT 0x01
#define USER_VERIFIED 0x04
#define ERR_GENERAL (-1)
#define ERR_UNSUPPORTED (-2)
#define ERR_PIN_REQUIRED (-3)

struct sk_enroll_response {
    uint8_t flags;
    uint8_t *public_key;
    size_t public_key_len;
    uint8_t *key_handle;
    size_t key_handle_len;
    uint8_t *signature;
    size_t signature_len;
    uint8_t *attestation_cert;
    size_t attestation_cert_len;
    uint8_t *authdata;
    size_t authdata_len;
};

struct sk_sign_response {
    uint8_t flags;
    uint32_t counter;
    uint8_t *sig_r;
    size_t sig_r_len;
    uint8_t *sig_s;
    size_t sig_s_len;
};

struct sk_option;
struct sk_resident_key;

enum { KEY = 32, SIGNATURE = 64 };

uint32_t sk_api_version(void)
{
    return VERSION;
}

/* Opens a file beside this library. */
static FILE *beside(const char *name)
{
    char path[4096];
    Dl_info self;
    if (!dladdr((void *)(uintptr_t)sk_api_version, &self))
        return NULL;
    const char *slash = strrchr(self.dli_fname, '/');
    int folder = slash ? (int)(slash - self.dli_fname) : 0;
    int length = snprintf(path, sizeof path, "%.*s/%s", folder, self.dli_fname, name);
    return length < (int)sizeof path ? fopen(path, "r") : NULL;
}

/* Whether this is the PIN. */
static int is_pin(const char *pin)
{
    char right[64] = "";
    FILE *file = beside("pin");
    if (!file)
        return 0;
    char *line = fgets(right, sizeof right, file);
    fclose(file);
    return line && pin && strcmp(right, pin) == 0;
}

/* Waits until somebody touches the token, where it wants that. */
static int is_touched(void)
{
    FILE *touch = beside("touch");
    if (!touch)
        return 1;
    int byte = fgetc(touch);
    fclose(touch);
    return byte != EOF;
}

static uint8_t *copy(const uint8_t *bytes, size_t length)
{
    uint8_t *made = malloc(length);
    return made ? memcpy(made, bytes, length) : NULL;
}

int sk_enroll(uint32_t alg, const uint8_t *challenge, size_t challenge_len, const char *application,
              uint8_t flags, const char *pin, struct sk_option **options,
              struct sk_enroll_response **response)
{
    (void)challenge, (void)challenge_len, (void)application, (void)pin, (void)options;
    if (alg != ED25519)
        return ERR_UNSUPPORTED;
    uint8_t private[KEY], public[KEY];
    size_t private_len = KEY, public_len = KEY;
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    int made = key && EVP_PKEY_get_raw_private_key(key, private, &private_len) == 1 &&
               EVP_PKEY_get_raw_public_key(key, public, &public_len) == 1;
    EVP_PKEY_free(key);
    struct sk_enroll_response *new = made ? calloc(1, sizeof *new) : NULL;
    if (!new)
        return ERR_GENERAL;
    new->flags = flags;
    new->public_key = copy(public, new->public_key_len = KEY);
    new->key_handle = copy(private, new->key_handle_len = KEY);
    /* No attestation: who made the token is nobody's question here. */
    new->signature = calloc(1, new->signature_len = SIGNATURE);
    if (!new->public_key || !new->key_handle || !new->signature)
        return ERR_GENERAL;
    *response = new;
    return 0;
}

int sk_sign(uint32_t alg, const uint8_t *data, size_t data_len, const char *application,
            const uint8_t *key_handle, size_t key_handle_len, uint8_t flags, const char *pin,
            struct sk_option **options, struct sk_sign_response **response)
{
    (void)options;
    if (alg != ED25519 || key_handle_len != KEY)
        return ERR_UNSUPPORTED;
    if ((flags & USER_VERIFIED) && !is_pin(pin))
        return ERR_PIN_REQUIRED;
    if (!is_touched())
        return ERR_GENERAL;
    struct sk_sign_response *new = calloc(1, sizeof *new);
    if (!new)
        return ERR_GENERAL;
    new->flags = USER_PRESENT | (flags & USER_VERIFIED);
    new->counter = 1;
    /* SHA256(application), flags, counter, SHA256(data) */
    uint8_t signed_text[2 * SHA256_DIGEST_LENGTH + 5];
    uint8_t *at = signed_text;
    SHA256((const uint8_t *)application, strlen(application), at);
    at += SHA256_DIGEST_LENGTH;
    *at++ = new->flags;
    for (int shift = 24; shift >= 0; shift -= 8)
        *at++ = (uint8_t)(new->counter >> shift);
    SHA256(data, data_len, at);
    new->sig_r = calloc(1, new->sig_r_len = SIGNATURE);
    EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, key_handle, KEY);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    int made = new->sig_r && key && context &&
               EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
               EVP_DigestSign(context, new->sig_r, &new->sig_r_len, signed_text,
                              sizeof signed_text) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    *response = new;
    return made ? 0 : ERR_GENERAL;
}

int sk_load_resident_keys(const char *pin, struct sk_option **options, struct sk_resident_key ***keys,
                          size_t *count)
{
    (void)pin, (void)options, (void)keys, (void)count;
    return ERR_UNSUPPORTED;
}
