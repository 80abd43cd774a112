// SPDX-License-Identifier: Apache-2.0
//
// GnuTLS for Swift: a session whose transport is memory, credentials from memory, and the ciphers
// of disk encryption. Functions return what GnuTLS returns, a negative code on failure.
// Source: gnutls.h, "Callback functions"; crypto.h.
// Memory that GnuTLS and we hand to each other is that of malloc(3), which is all that it uses.
#pragma once
#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#pragma clang assume_nonnull begin

/// Loads the library; nothing else here may be called before. Returns NULL, or what is wrong.
const char *_Nullable cgnutls_load(void);

/// The wire of a session for the time of one call: bytes of the peer that GnuTLS has not taken
/// yet, and room for bytes that go to the peer.
typedef struct {
  const void *_Nullable input;
  size_t input_count;
  void *_Nullable output;
  size_t output_room;
} cgnutls_wire;

static inline ssize_t cgnutls_pull(void *_Nullable context, void *_Nullable data, size_t count) {
  cgnutls_wire *wire = (cgnutls_wire *)context;
  size_t taken = count < wire->input_count ? count : wire->input_count;
  if (taken == 0) {
    errno = EAGAIN;
    return -1;
  }
  memcpy(data, wire->input, taken);
  wire->input = (const char *)wire->input + taken;
  wire->input_count -= taken;
  return (ssize_t)taken;
}

static inline ssize_t cgnutls_push(void *_Nullable context, const void *_Nullable data,
                                   size_t count) {
  cgnutls_wire *wire = (cgnutls_wire *)context;
  size_t put = count < wire->output_room ? count : wire->output_room;
  if (put == 0) {
    errno = EAGAIN;
    return -1;
  }
  memcpy(wire->output, data, put);
  wire->output = (char *)wire->output + put;
  wire->output_room -= put;
  return (ssize_t)put;
}

/// Never waits: what is not there now does not come during the call.
static inline int cgnutls_pull_timeout(void *_Nullable context, unsigned milliseconds) {
  (void)milliseconds;
  return ((cgnutls_wire *)context)->input_count > 0;
}

// -- Pre-shared keys -------------------------------------------------------------------------

/// Where an identity and its key are in the bytes of a list.
typedef struct {
  uint32_t name_start, name_count, key_start, key_count;
} cgnutls_psk;

typedef struct {
  const unsigned char *bytes;
  const cgnutls_psk *entries;
  size_t count;
} cgnutls_psk_list;

/// Finds the key of an identity in the list that `cgnutls_open` was given. 1 tells GnuTLS that
/// there is none; it then goes on with a random key, so that a guess learns nothing.
static inline int cgnutls_find_psk(gnutls_session_t _Nullable session,
                                   const gnutls_datum_t *_Nullable name,
                                   gnutls_datum_t *_Nullable key) {
  const cgnutls_psk_list *list = (const cgnutls_psk_list *)gnutls_session_get_ptr(session);
  for (size_t index = 0; index < list->count; index++) {
    const cgnutls_psk *entry = &list->entries[index];
    if (entry->name_count != name->size) continue;
    if (memcmp(list->bytes + entry->name_start, name->data, name->size) != 0) continue;
    key->data = (unsigned char *)malloc(entry->key_count);
    if (key->data == NULL) return -1;
    memcpy(key->data, list->bytes + entry->key_start, entry->key_count);
    key->size = entry->key_count;
    return 0;
  }
  return 1;
}

static inline void cgnutls_use_psk_list(gnutls_psk_server_credentials_t credentials) {
  gnutls_psk_set_server_credentials_function2(credentials, cgnutls_find_psk);
}

static inline int cgnutls_set_client_psk(gnutls_psk_client_credentials_t credentials,
                                         const char *name, const void *key, size_t byte_count) {
  gnutls_datum_t datum = {(unsigned char *)key, (unsigned)byte_count};
  return gnutls_psk_set_client_credentials(credentials, name, &datum, GNUTLS_PSK_KEY_RAW);
}

// -- Certificates ----------------------------------------------------------------------------

/// The number of certificates that were read, or an error.
static inline int cgnutls_add_authorities(gnutls_certificate_credentials_t credentials,
                                          const void *pem, size_t byte_count) {
  gnutls_datum_t datum = {(unsigned char *)pem, (unsigned)byte_count};
  return gnutls_certificate_set_x509_trust_mem(credentials, &datum, GNUTLS_X509_FMT_PEM);
}

/// The same with those that this system believes.
static inline int cgnutls_add_system_authorities(gnutls_certificate_credentials_t credentials) {
  return gnutls_certificate_set_x509_system_trust(credentials);
}

/// The number of lists of revoked certificates that were read, or an error.
static inline int cgnutls_add_revocations(gnutls_certificate_credentials_t credentials,
                                          const void *pem, size_t byte_count) {
  gnutls_datum_t datum = {(unsigned char *)pem, (unsigned)byte_count};
  return gnutls_certificate_set_x509_crl_mem(credentials, &datum, GNUTLS_X509_FMT_PEM);
}

static inline int cgnutls_set_key_pair(gnutls_certificate_credentials_t credentials,
                                       const void *certificate, size_t certificate_count,
                                       const void *key, size_t key_count) {
  gnutls_datum_t certificate_datum = {(unsigned char *)certificate, (unsigned)certificate_count};
  gnutls_datum_t key_datum = {(unsigned char *)key, (unsigned)key_count};
  return gnutls_certificate_set_x509_key_mem2(credentials, &certificate_datum, &key_datum,
                                              GNUTLS_X509_FMT_PEM, NULL, 0);
}

/// Checks the peer's chain; `*status` gets the bits of gnutls_certificate_status_t. A host's name
/// is checked when there is one.
static inline int cgnutls_verify(gnutls_session_t session, int is_server,
                                 const char *_Nullable host, unsigned *status) {
  const char *purpose = is_server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
  gnutls_typed_vdata_st data[2] = {
      {GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)purpose, 0},
      {GNUTLS_DT_DNS_HOSTNAME, (unsigned char *)host, 0},
  };
  return gnutls_certificate_verify_peers(session, data, host == NULL ? 1 : 2, status);
}

/// A text that says what the bits of `status` mean; free it with `cgnutls_free`.
static inline int cgnutls_describe_status(unsigned status, gnutls_datum_t *text) {
  return gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, text, 0);
}

/// The distinguished name of the peer's certificate; free it with `cgnutls_free`.
static inline int cgnutls_peer_name(gnutls_session_t session, gnutls_datum_t *name) {
  unsigned count = 0;
  const gnutls_datum_t *list = gnutls_certificate_get_peers(session, &count);
  if (list == NULL || count == 0) return GNUTLS_E_NO_CERTIFICATE_FOUND;
  gnutls_x509_crt_t certificate;
  int result = gnutls_x509_crt_init(&certificate);
  if (result < 0) return result;
  result = gnutls_x509_crt_import(certificate, &list[0], GNUTLS_X509_FMT_DER);
  if (result >= 0) result = gnutls_x509_crt_get_dn2(certificate, name);
  gnutls_x509_crt_deinit(certificate);
  return result;
}

static inline void cgnutls_free(void *_Nullable memory) { free(memory); }

// -- Sessions --------------------------------------------------------------------------------

/// Makes a session on `wire`. `keys` is for `cgnutls_find_psk`. Both outlive the session.
static inline int cgnutls_open(gnutls_session_t _Nullable *_Nonnull session, int is_server,
                               cgnutls_wire *wire, cgnutls_psk_list *_Nullable keys) {
  unsigned flags = GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL;
  int result = gnutls_init(session, flags | (is_server ? GNUTLS_SERVER : GNUTLS_CLIENT));
  if (result < 0) return result;
  gnutls_transport_set_ptr(*session, wire);
  gnutls_transport_set_pull_function(*session, cgnutls_pull);
  gnutls_transport_set_push_function(*session, cgnutls_push);
  gnutls_transport_set_pull_timeout_function(*session, cgnutls_pull_timeout);
  gnutls_session_set_ptr(*session, keys);
  return result;
}

static inline int cgnutls_use_certificates(gnutls_session_t session,
                                           gnutls_certificate_credentials_t credentials) {
  return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
}

static inline int cgnutls_use_server_psk(gnutls_session_t session,
                                         gnutls_psk_server_credentials_t credentials) {
  return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials);
}

static inline int cgnutls_use_client_psk(gnutls_session_t session,
                                         gnutls_psk_client_credentials_t credentials) {
  return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials);
}

/// Says to a server by which of its names it is meant; only for names, not for IP addresses.
static inline int cgnutls_tell_server_name(gnutls_session_t session, const char *name) {
  return gnutls_server_name_set(session, GNUTLS_NAME_DNS, name, strlen(name));
}

/// Whether the server proved itself with a shared key.
static inline int cgnutls_server_has_psk(gnutls_session_t session) {
  return gnutls_auth_server_get_type(session) == GNUTLS_CRD_PSK;
}

static inline void cgnutls_ask_for_certificate(gnutls_session_t session) {
  gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUEST);
}

/// Whether the session waits for room rather than for input.
static inline int cgnutls_wants_room(gnutls_session_t session) {
  return gnutls_record_get_direction(session) == 1;
}

/// Announces the end of what this side sends, without waiting for the other.
static inline int cgnutls_say_goodbye(gnutls_session_t session) {
  return gnutls_bye(session, GNUTLS_SHUT_WR);
}

// -- Ciphers ---------------------------------------------------------------------------------

/// Makes a cipher with a key, which is copied. An initialisation vector is set before each use.
static inline int cgnutls_make_cipher(gnutls_cipher_hd_t _Nullable *_Nonnull cipher,
                                      gnutls_cipher_algorithm_t algorithm, const void *key,
                                      size_t byte_count) {
  gnutls_datum_t datum = {(unsigned char *)key, (unsigned)byte_count};
  return gnutls_cipher_init(cipher, algorithm, &datum, NULL);
}

/// PBKDF2 (RFC 8018) with HMAC of a hash.
static inline int cgnutls_derive(gnutls_mac_algorithm_t hash, const void *password,
                                 size_t password_count, const void *salt, size_t salt_count,
                                 unsigned iterations, void *key, size_t key_count) {
  gnutls_datum_t password_datum = {(unsigned char *)password, (unsigned)password_count};
  gnutls_datum_t salt_datum = {(unsigned char *)salt, (unsigned)salt_count};
  return gnutls_pbkdf2(hash, &password_datum, &salt_datum, iterations, key, key_count);
}

#pragma clang assume_nonnull end
