// SPDX-License-Identifier: Apache-2.0
//
// One TLS session as a machine over bytes: what came from the peer in, what goes to it out. It
// knows no socket and never waits. Source: gnutls_handshake(3), gnutls_record_recv(3),
// gnutls_record_send(3), gnutls_bye(3).

import CGnuTLS

/// A session of either end. Each call takes the peer's bytes that it is given, as far as it can
/// use them, and puts what is for the peer into the room that it is given.
@safe public struct TLSSession: ~Copyable {
  /// How a call ended.
  public enum Progress: Hashable, Sendable {
    /// So many bytes of plain text came or went; 0 for a handshake that is over.
    case bytes(Int)
    /// All input is taken, and more of it is needed.
    case wantsRead
    /// There is no room for what has to go to the peer first.
    case wantsWrite
    /// The peer said that it sends no more.
    case closed
    /// The session is of no use any more.
    case failed(TLSFault)
  }

  /// A call's end, and what it did to the bytes on either side.
  public struct Step: Hashable, Sendable {
    public let progress: Progress
    /// Bytes of the input that were taken.
    public let takenByteCount: Int
    /// Bytes for the peer that were put into the room.
    public let putByteCount: Int
  }

  /// Bytes of plain text that one record holds (RFC 8446, section 5.1).
  public static var recordByteCountMax: Int { 16_384 }
  /// Room with which `send` always succeeds: the plain text, and the headers and tags of records
  /// as small as a peer may ask for (RFC 8449 allows 64 bytes).
  public static var sendRoomByteCount: Int { 2 * recordByteCountMax }

  let handle: gnutls_session_t
  private let wire: UnsafeMutablePointer<cgnutls_wire>
  private let credentials: TLSCredentials
  /// The name that a client wants in the server's certificate.
  private let host: String?
  /// The last `receive` met the end of the session behind bytes that it had to return first: the
  /// next one returns that end, and there may be no further input that leads to it.
  public private(set) var hasUntoldEnd = false
  /// What a `receive` failed with, until the peer is told; 0 for nothing.
  private var failureCode: Int32 = 0

  /// - Parameter host: for clients that check certificates; nil takes any name.
  public init(_ credentials: TLSCredentials, host: String? = nil) throws(TLSFault) {
    let wire = UnsafeMutablePointer<cgnutls_wire>.allocate(capacity: 1)
    unsafe wire.initialize(to: cgnutls_wire())
    do throws(TLSFault) {
      unsafe handle = unsafe try credentials.open(on: wire)
    } catch {
      unsafe wire.deallocate()
      throw error
    }
    unsafe self.wire = unsafe wire
    self.credentials = credentials
    self.host = host
    if credentials.role == .client, let host { tellServerName(host) }
  }

  /// A server with several certificates chooses by it. Numbers are no names (RFC 6066, section 3).
  private func tellServerName(_ host: String) {
    let isNumber = host.contains(":") || host.utf8.allSatisfy { $0 < UInt8(ascii: "A") }
    // A name that cannot be told is still checked.
    if !isNumber { _ = unsafe cgnutls_tell_server_name(handle, host) }
  }

  deinit {
    // SAFETY: the session goes before the wire that it writes to and the credentials it reads.
    unsafe gnutls_deinit(handle)
    unsafe wire.deallocate()
  }

  /// Bytes of plain text that are decrypted and not asked for yet.
  public var pendingByteCount: Int { unsafe gnutls_record_check_pending(handle) }

  /// "TLS1.3", once the handshake is over.
  public var version: String {
    // SAFETY: the names are literals of the library.
    guard let name = unsafe gnutls_protocol_get_name(gnutls_protocol_get_version(handle)) else {
      return "?"
    }
    return unsafe String(cString: name)
  }

  /// Goes on with the handshake; `.bytes(0)` when it is over. When it fails, the alert that tells
  /// the peer is in the room.
  public mutating func handshake(_ input: RawSpan, _ room: inout MutableRawSpan) -> Step {
    unsafe exchange(input, &room) { session, wire in
      while true {
        let inputCount = unsafe wire.pointee.input_count
        let code = unsafe gnutls_handshake(session)
        if code == GNUTLS_E_SUCCESS { return .bytes(0) }
        if code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED {
          return unsafe cgnutls_wants_room(session) != 0 ? .wantsWrite : .wantsRead
        }
        // A warning. Each costs the peer a record, so this ends with the input.
        let hasTaken = unsafe wire.pointee.input_count < inputCount
        if hasTaken, gnutls_error_is_fatal(code) == 0 { continue }
        unsafe gnutls_alert_send_appropriate(session, code)
        return .failed(unsafe TLSSession.fault("handshake", code, session))
      }
    }
  }

  /// Decrypts into `plaintext`, as much as there is and fits.
  public mutating func receive(_ input: RawSpan, into plaintext: inout MutableRawSpan) -> Step {
    unsafe plaintext.withUnsafeMutableBytes { target in
      guard let start = target.baseAddress, target.count > 0 else {
        return Step(progress: .bytes(0), takenByteCount: 0, putByteCount: 0)
      }
      var nowhere = MutableRawSpan()
      let byteCount = target.count
      var metEnd = false
      var code: Int32 = 0
      let step = unsafe exchange(input, &nowhere) { session, wire in
        unsafe TLSSession.receive(session, wire, start, byteCount, &metEnd, &code)
      }
      hasUntoldEnd = metEnd
      if case .failed = step.progress { failureCode = code }
      return step
    }
  }

  private static func receive(
    _ session: gnutls_session_t, _ wire: UnsafeMutablePointer<cgnutls_wire>,
    _ start: UnsafeMutableRawPointer, _ byteCount: Int, _ metEnd: inout Bool,
    _ code: inout Int32
  ) -> Progress {
    var count = 0
    var inputCount = unsafe wire.pointee.input_count
    while count < byteCount {
      // SAFETY: GnuTLS writes at most the rest of the range.
      let result = unsafe gnutls_record_recv(session, start + count, byteCount - count)
      if result > 0 {
        count += result
        continue
      }
      code = Int32(result)
      if result == 0 || code == GNUTLS_E_REHANDSHAKE || gnutls_error_is_fatal(code) != 0 {
        guard count == 0 else {
          metEnd = true  // and the next call finds it again
          return .bytes(count)
        }
        return unsafe end(session, code)
      }
      // Something that is no plain text was taken, or nothing is left to take.
      let left = unsafe wire.pointee.input_count
      if left == inputCount || left == 0 { return count > 0 ? .bytes(count) : .wantsRead }
      inputCount = left
    }
    return .bytes(count)
  }

  /// The end of what the peer sends, for the code that GnuTLS received with.
  private static func end(_ session: gnutls_session_t, _ code: Int32) -> Progress {
    if code == 0 { return .closed }
    if code == GNUTLS_E_REHANDSHAKE {
      return .failed(TLSFault("session", "the peer wanted to negotiate again"))
    }
    return .failed(unsafe TLSSession.fault("session", code, session))
  }

  /// Puts the alert about a `receive` that failed into the room, once.
  public mutating func tellFailure(_ room: inout MutableRawSpan) -> Step {
    let code = failureCode
    failureCode = 0
    return unsafe exchange(RawSpan(), &room) { session, _ in
      // A peer that cannot be told finds out by the end of the connection.
      if code != 0 { unsafe gnutls_alert_send_appropriate(session, code) }
      return .bytes(0)
    }
  }

  /// Encrypts all of `plaintext`, which is `recordByteCountMax` bytes at most; there is room for
  /// `sendRoomByteCount`.
  public mutating func send(_ plaintext: RawSpan, _ room: inout MutableRawSpan) -> Step {
    precondition(
      plaintext.byteCount <= TLSSession.recordByteCountMax, "a send is larger than a record")
    precondition(
      room.byteCount >= TLSSession.sendRoomByteCount, "a send has no room for its records")
    return unsafe plaintext.withUnsafeBytes { source in
      guard let start = source.baseAddress else {
        return Step(progress: .bytes(0), takenByteCount: 0, putByteCount: 0)
      }
      let byteCount = source.count
      return unsafe exchange(RawSpan(), &room) { session, _ in
        var count = 0
        while count < byteCount {
          // SAFETY: GnuTLS reads at most the rest of the range.
          let result = unsafe gnutls_record_send(session, start + count, byteCount - count)
          guard result > 0 else {
            return .failed(unsafe TLSSession.fault("session", Int32(result), session))
          }
          count += result
        }
        return .bytes(count)
      }
    }
  }

  /// Tells the peer that nothing more comes; `.bytes(0)` when that is in the room.
  public mutating func sayGoodbye(_ room: inout MutableRawSpan) -> Step {
    unsafe exchange(RawSpan(), &room) { session, _ in
      let code = unsafe cgnutls_say_goodbye(session)
      if code == GNUTLS_E_SUCCESS { return .bytes(0) }
      if code == GNUTLS_E_AGAIN { return .wantsWrite }
      return .failed(unsafe TLSSession.fault("goodbye", code, session))
    }
  }

  /// Who the peer is. The handshake is over.
  public func peer() -> TLSPeer {
    if let name = unsafe gnutls_psk_server_get_username(handle) {
      // SAFETY: the name is a C string of the session's.
      return .preSharedKey(identity: unsafe String(cString: name))
    }
    if let identity = credentials.clientIdentity {
      guard unsafe cgnutls_server_has_psk(handle) != 0 else {
        return .refusedCertificate(reason: "the server did not prove that it knows the key")
      }
      return .preSharedKey(identity: identity)
    }
    guard credentials.verifiesPeer else { return .anonymous }
    var status: UInt32 = 0
    let isServer: Int32 = credentials.role == .server ? 1 : 0
    let code = unsafe cgnutls_verify(handle, isServer, host, &status)
    if code == GNUTLS_E_NO_CERTIFICATE_FOUND {
      return .refusedCertificate(reason: "a certificate is needed, and none was shown")
    }
    guard code >= 0 else {
      return .refusedCertificate(reason: TLSCredentials.text(of: code))
    }
    guard status == 0 else {
      let sentence = TLSSession.sentence(ofStatus: status)
      let isOfOther = status & UInt32(GNUTLS_CERT_UNEXPECTED_OWNER.rawValue) != 0
      return .refusedCertificate(
        reason: isOfOther ? "\(sentence): \(host ?? "")" : sentence)
    }
    var name = unsafe gnutls_datum_t()
    let nameCode = unsafe cgnutls_peer_name(handle, &name)
    guard nameCode >= 0 else {
      return .refusedCertificate(reason: TLSCredentials.text(of: nameCode))
    }
    return .certificate(distinguishedName: unsafe TLSSession.take(name))
  }

  // MARK: One call

  /// Lets GnuTLS see the bytes for the time of `body`.
  mutating func exchange(
    _ input: RawSpan, _ room: inout MutableRawSpan,
    _ body: (gnutls_session_t, UnsafeMutablePointer<cgnutls_wire>) -> Progress
  ) -> Step {
    unsafe room.withUnsafeMutableBytes { target in
      unsafe input.withUnsafeBytes { source in
        // SAFETY: both ranges outlive the call, and the wire forgets them before they go.
        unsafe wire.pointee = unsafe cgnutls_wire(
          input: source.baseAddress, input_count: source.count, output: target.baseAddress,
          output_room: target.count)
        let progress = unsafe body(handle, wire)
        let step = unsafe Step(
          progress: progress, takenByteCount: source.count - wire.pointee.input_count,
          putByteCount: target.count - wire.pointee.output_room)
        unsafe wire.pointee = unsafe cgnutls_wire()
        return step
      }
    }
  }

  /// The sentence for a code; for an alert of the peer, which one it was.
  private static func fault(
    _ subject: String, _ code: Int32, _ session: gnutls_session_t
  ) -> TLSFault {
    guard code == GNUTLS_E_FATAL_ALERT_RECEIVED || code == GNUTLS_E_WARNING_ALERT_RECEIVED,
      let name = unsafe gnutls_alert_get_name(gnutls_alert_get(session))
    else { return TLSFault(subject, TLSCredentials.text(of: code)) }
    // SAFETY: the names are literals of the library.
    return TLSFault(subject, "the peer ended it: \(unsafe String(cString: name))")
  }

  private static func sentence(ofStatus status: UInt32) -> String {
    var text = unsafe gnutls_datum_t()
    guard unsafe cgnutls_describe_status(status, &text) >= 0 else {
      return "the certificate is not trusted"
    }
    let sentence = unsafe take(text)
    // "The certificate is NOT trusted. The certificate issuer is unknown. "
    return String(sentence.dropLast(while: { $0 == " " || $0 == "." }))
  }

  /// The text in memory of the library's, which is given back.
  private static func take(_ datum: gnutls_datum_t) -> String {
    // SAFETY: the library allocated `size` bytes at `data`, and nobody else frees them.
    let bytes = unsafe UnsafeBufferPointer(start: datum.data, count: Int(datum.size))
    defer { unsafe cgnutls_free(datum.data) }
    return unsafe String(decoding: bytes, as: UTF8.self)
  }
}

extension String {
  /// Without the characters at its end that satisfy `predicate`.
  fileprivate func dropLast(while predicate: (Character) -> Bool) -> Substring {
    var end = endIndex
    while end > startIndex, predicate(self[index(before: end)]) { end = index(before: end) }
    return self[..<end]
  }
}
