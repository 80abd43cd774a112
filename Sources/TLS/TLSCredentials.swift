// SPDX-License-Identifier: Apache-2.0
//
// What one end shows and believes: certificates and authorities, or pre-shared keys; and which
// versions and ciphers it uses. Made from memory: this file opens nothing.
// Source: gnutls_certificate_set_x509_key_mem2(3), gnutls_psk_set_server_credentials_function2(3),
// gnutls_priority_init(3).

import CGnuTLS

/// Shared by the sessions of one end, on any thread: nobody changes them once they are made.
@safe public final class TLSCredentials {
  public enum Role: Sendable { case server, client }

  /// The PEM files of one end.
  public struct CertificateFiles: Sendable {
    /// Who signs the certificates of the others; nil: whom this system believes.
    public var authorities: [UInt8]?
    /// Which of those count no longer.
    public var revocations: [UInt8]?
    /// The own certificate, with those between it and the authority, and its key. A client may
    /// have none.
    public var certificate: [UInt8]?
    public var key: [UInt8]?

    public init(
      authorities: [UInt8]?, revocations: [UInt8]? = nil, certificate: [UInt8]? = nil,
      key: [UInt8]? = nil
    ) {
      self.authorities = authorities
      self.revocations = revocations
      self.certificate = certificate
      self.key = key
    }
  }

  /// TLS 1.2 and 1.3 (proto.md, "TLS versions").
  public static var defaultPriority: String { "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2" }
  /// What is added to any priority where keys are shared.
  static var keyPriority: String { ":+ECDHE-PSK:+DHE-PSK:+PSK" }

  public let role: Role
  /// Whether the peer's certificate is asked for and checked.
  public let verifiesPeer: Bool
  /// Of a client with a shared key.
  private(set) var clientIdentity: String?
  private var priority: gnutls_priority_t?
  private var certificates: gnutls_certificate_credentials_t?
  private var serverKeys: gnutls_psk_server_credentials_t?
  private var clientKeys: gnutls_psk_client_credentials_t?
  private var keyBytes: UnsafeMutableBufferPointer<UInt8>?
  private var keyEntries: UnsafeMutableBufferPointer<cgnutls_psk>?
  private var keyList: UnsafeMutablePointer<cgnutls_psk_list>?

  /// - Parameter verifiesPeer: a server asks its clients for certificates; a client checks the
  ///   server's.
  /// - Throws: what GnuTLS finds wrong, with the file that it is about as subject.
  public init(
    _ files: CertificateFiles, role: Role, verifiesPeer: Bool, priority: String?
  ) throws(TLSFault) {
    self.role = role
    self.verifiesPeer = verifiesPeer
    try choosePriority(priority ?? TLSCredentials.defaultPriority)
    try TLSCredentials.check(
      unsafe gnutls_certificate_allocate_credentials(&certificates), "certificates")
    // SAFETY: the credentials were made above; GnuTLS copies what it reads from the arrays.
    guard let certificates = unsafe certificates else {
      throw TLSFault("certificates", "there is no memory")
    }
    if let authorities = files.authorities {
      let count = try TLSCredentials.check(
        unsafe cgnutls_add_authorities(certificates, authorities, authorities.count),
        "ca-cert.pem")
      guard count > 0 else { throw TLSFault("ca-cert.pem", "there is no certificate in it") }
    } else if verifiesPeer {
      let count = try TLSCredentials.check(
        unsafe cgnutls_add_system_authorities(certificates), "this system's authorities")
      guard count > 0 else { throw TLSFault("this system's authorities", "there are none") }
    }
    if let revocations = files.revocations {
      try TLSCredentials.check(
        unsafe cgnutls_add_revocations(certificates, revocations, revocations.count),
        "ca-crl.pem")
    }
    if let certificate = files.certificate, let key = files.key {
      try TLSCredentials.check(
        unsafe cgnutls_set_key_pair(
          certificates, certificate, certificate.count, key, key.count),
        "the certificate and its key")
    }
  }

  /// - Parameter keys: for a server all it knows; for a client the first one is used.
  public init(keys: PSKTable, role: Role, priority: String?) throws(TLSFault) {
    self.role = role
    verifiesPeer = false
    let wanted = priority ?? TLSCredentials.defaultPriority
    try choosePriority(wanted + TLSCredentials.keyPriority)
    switch role {
    case .server:
      keep(keys)
      try TLSCredentials.check(unsafe gnutls_psk_allocate_server_credentials(&serverKeys), "keys")
      guard let serverKeys = unsafe serverKeys else { throw TLSFault("keys", "no memory") }
      unsafe cgnutls_use_psk_list(serverKeys)
      try TLSCredentials.check(
        unsafe gnutls_psk_set_server_known_dh_params(serverKeys, GNUTLS_SEC_PARAM_MEDIUM), "keys")
    case .client:
      try TLSCredentials.check(unsafe gnutls_psk_allocate_client_credentials(&clientKeys), "keys")
      guard let clientKeys = unsafe clientKeys, let entry = keys.entries.first else {
        throw TLSFault("keys", "there is no identity")
      }
      let identity = String(decoding: entry.identity, as: UTF8.self)
      clientIdentity = identity
      try TLSCredentials.check(
        unsafe cgnutls_set_client_psk(clientKeys, identity, entry.key, entry.key.count), "keys")
    }
  }

  deinit {
    if let priority = unsafe priority { unsafe gnutls_priority_deinit(priority) }
    if let certificates = unsafe certificates {
      unsafe gnutls_certificate_free_credentials(certificates)
    }
    if let serverKeys = unsafe serverKeys {
      unsafe gnutls_psk_free_server_credentials(serverKeys)
    }
    if let clientKeys = unsafe clientKeys {
      unsafe gnutls_psk_free_client_credentials(clientKeys)
    }
    unsafe keyList?.deallocate()
    unsafe keyEntries?.deallocate()
    unsafe keyBytes?.update(repeating: 0)
    unsafe keyBytes?.deallocate()
  }

  /// The first thing that credentials need, and so the place where GnuTLS is loaded.
  private func choosePriority(_ text: String) throws(TLSFault) {
    // SAFETY: the text is the library's own, and stays.
    if let reason = unsafe cgnutls_load() {
      throw TLSFault("GnuTLS", unsafe String(cString: reason))
    }
    try TLSCredentials.check(
      unsafe gnutls_priority_init(&priority, text, nil), "the priority '\(text)'")
  }

  /// Lays the keys out as the look-up reads them; they stay as long as this object does.
  private func keep(_ keys: PSKTable) {
    let byteCount = keys.entries.reduce(0) { $0 + $1.identity.count + $1.key.count }
    let bytes = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: byteCount)
    let entries = UnsafeMutableBufferPointer<cgnutls_psk>.allocate(capacity: keys.entries.count)
    var end = 0
    func append(_ field: [UInt8]) -> (start: UInt32, count: UInt32) {
      // SAFETY: `byteCount` is the sum of all fields, so each ends inside the allocation.
      for (index, byte) in field.enumerated() {
        unsafe (bytes.baseAddress.unsafelyUnwrapped + end + index).initialize(to: byte)
      }
      defer { end += field.count }
      return (UInt32(end), UInt32(field.count))
    }
    for (index, entry) in keys.entries.enumerated() {
      let name = append(entry.identity)
      let key = append(entry.key)
      unsafe (entries.baseAddress.unsafelyUnwrapped + index).initialize(
        to: cgnutls_psk(
          name_start: name.start, name_count: name.count, key_start: key.start,
          key_count: key.count))
    }
    let list = UnsafeMutablePointer<cgnutls_psk_list>.allocate(capacity: 1)
    unsafe list.initialize(
      to: cgnutls_psk_list(
        bytes: bytes.baseAddress.unsafelyUnwrapped,
        entries: entries.baseAddress.unsafelyUnwrapped, count: keys.entries.count))
    unsafe keyBytes = unsafe bytes
    unsafe keyEntries = unsafe entries
    unsafe keyList = unsafe list
  }

  /// Makes a session that uses these credentials, which must outlive it.
  func open(on wire: UnsafeMutablePointer<cgnutls_wire>) throws(TLSFault) -> gnutls_session_t {
    var made: gnutls_session_t?
    try TLSCredentials.check(
      unsafe cgnutls_open(&made, role == .server ? 1 : 0, wire, keyList), "session")
    guard let session = unsafe made else { throw TLSFault("session", "there is no memory") }
    do throws(TLSFault) {
      try unsafe equip(session)
    } catch {
      unsafe gnutls_deinit(session)
      throw error
    }
    return unsafe session
  }

  private func equip(_ session: gnutls_session_t) throws(TLSFault) {
    guard let priority = unsafe priority else { throw TLSFault("session", "no priority") }
    try TLSCredentials.check(unsafe gnutls_priority_set(session, priority), "session")
    if let certificates = unsafe certificates {
      try TLSCredentials.check(unsafe cgnutls_use_certificates(session, certificates), "session")
    }
    if let serverKeys = unsafe serverKeys {
      try TLSCredentials.check(unsafe cgnutls_use_server_psk(session, serverKeys), "session")
    }
    if let clientKeys = unsafe clientKeys {
      try TLSCredentials.check(unsafe cgnutls_use_client_psk(session, clientKeys), "session")
    }
    if role == .server, verifiesPeer { unsafe cgnutls_ask_for_certificate(session) }
  }

  /// Returns `code` unless it is an error.
  @discardableResult
  static func check(_ code: Int32, _ subject: String) throws(TLSFault) -> Int32 {
    guard code < 0 else { return code }
    throw TLSFault(subject, text(of: code))
  }

  /// GnuTLS's sentence for a code, without its full stop.
  static func text(of code: Int32) -> String {
    // SAFETY: the library's sentences are literals of its own.
    let sentence = unsafe String(cString: gnutls_strerror(code))
    return sentence.hasSuffix(".") ? String(sentence.dropLast()) : sentence
  }
}
