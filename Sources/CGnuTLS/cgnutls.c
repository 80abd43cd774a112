// SPDX-License-Identifier: Apache-2.0
//
// GnuTLS, loaded when TLS or an encrypted image is asked for. Linked as usual it would take 2 ms of
// the start of every program here and 3 MiB of every export, most of which need neither. So its functions are defined
// here, each as a jump to the real one. This file must not see gnutls.h, whose types the
// definitions would contradict: a jump leaves arguments and results where they are.
// Source: dlopen(3); the procedure call standards of both machines (r11 and x16 are for this).
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

#define FUNCTIONS(X) \
  X(gnutls_alert_get) \
  X(gnutls_alert_get_name) \
  X(gnutls_alert_send_appropriate) \
  X(gnutls_auth_server_get_type) \
  X(gnutls_bye) \
  X(gnutls_certificate_allocate_credentials) \
  X(gnutls_certificate_free_credentials) \
  X(gnutls_certificate_get_peers) \
  X(gnutls_certificate_server_set_request) \
  X(gnutls_certificate_set_x509_crl_mem) \
  X(gnutls_certificate_set_x509_key_mem2) \
  X(gnutls_certificate_set_x509_system_trust) \
  X(gnutls_certificate_set_x509_trust_mem) \
  X(gnutls_certificate_verification_status_print) \
  X(gnutls_certificate_verify_peers) \
  X(gnutls_cipher_decrypt2) \
  X(gnutls_cipher_deinit) \
  X(gnutls_cipher_encrypt2) \
  X(gnutls_cipher_init) \
  X(gnutls_cipher_set_iv) \
  X(gnutls_credentials_set) \
  X(gnutls_deinit) \
  X(gnutls_error_is_fatal) \
  X(gnutls_handshake) \
  X(gnutls_hash_fast) \
  X(gnutls_init) \
  X(gnutls_pbkdf2) \
  X(gnutls_priority_deinit) \
  X(gnutls_priority_init) \
  X(gnutls_priority_set) \
  X(gnutls_protocol_get_name) \
  X(gnutls_protocol_get_version) \
  X(gnutls_psk_allocate_client_credentials) \
  X(gnutls_psk_allocate_server_credentials) \
  X(gnutls_psk_free_client_credentials) \
  X(gnutls_psk_free_server_credentials) \
  X(gnutls_psk_server_get_username) \
  X(gnutls_psk_set_client_credentials) \
  X(gnutls_psk_set_server_credentials_function2) \
  X(gnutls_psk_set_server_known_dh_params) \
  X(gnutls_record_check_pending) \
  X(gnutls_record_get_direction) \
  X(gnutls_record_recv) \
  X(gnutls_record_send) \
  X(gnutls_record_set_max_recv_size) \
  X(gnutls_rnd) \
  X(gnutls_server_name_set) \
  X(gnutls_session_get_ptr) \
  X(gnutls_session_key_update) \
  X(gnutls_session_set_ptr) \
  X(gnutls_strerror) \
  X(gnutls_transport_set_ptr) \
  X(gnutls_transport_set_pull_function) \
  X(gnutls_transport_set_pull_timeout_function) \
  X(gnutls_transport_set_push_function) \
  X(gnutls_x509_crt_deinit) \
  X(gnutls_x509_crt_get_dn2) \
  X(gnutls_x509_crt_import) \
  X(gnutls_x509_crt_init)

#if defined(__x86_64__)
#define JUMP(name) "movq real_" #name "(%rip), %r11\n\tjmpq *%r11"
#elif defined(__aarch64__)
#define JUMP(name) "adrp x16, real_" #name "\n\tldr x16, [x16, :lo12:real_" #name "]\n\tbr x16"
#else
#error "write the jump for this machine"
#endif

#define DEFINE(name)                                                   \
  __attribute__((visibility("hidden"), used)) void *real_##name = NULL; \
  __attribute__((naked)) void name(void) { __asm__(JUMP(name)); }
FUNCTIONS(DEFINE)

const char *cgnutls_load(void);

const char *cgnutls_load(void) {
  static int is_loaded = 0;
  if (is_loaded) return NULL;
  void *library = dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return dlerror();
#define RESOLVE(name)                          \
  real_##name = dlsym(library, #name);         \
  if (real_##name == NULL) return dlerror();
  FUNCTIONS(RESOLVE)
  is_loaded = 1;
  return NULL;
}
