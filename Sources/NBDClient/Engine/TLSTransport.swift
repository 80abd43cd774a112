// SPDX-License-Identifier: Apache-2.0
//
// TLS around another transport. Source: gnutls_bye(3); proto.md, "TLS support", "Terminating the
// transmission phase". This file performs no I/O but through the inner transport.

import LinuxIO
import TLS

/// A session over a transport in clear.
final class TLSTransport: Transport {
  private let inner: any Transport
  private var stream: TLSStream
  private var ciphertext = [UInt8](repeating: 0, count: 64 << 10)
  private(set) var endReason: String?

  /// `inner` belongs to this one from now on.
  init(_ inner: any Transport, _ session: consuming TLSSession) {
    self.inner = inner
    stream = TLSStream(session)
  }

  var descriptor: Int32 { inner.descriptor }
  var hasReceived: Bool { endReason == nil && stream.hasReceived }
  var hasUnsent: Bool { stream.hasWaiting }

  /// Goes on with the handshake as far as that goes without waiting; true when it is over.
  ///
  /// - Throws: `insecure` for what TLS has to object to, `lost` when the server left.
  func handshake() throws(NBDClientFault) -> Bool {
    while true {
      let progress = stream.handshake()
      let isOpen = flush()
      switch progress {
      case .bytes:
        if case .refusedCertificate(let reason) = stream.peer() {
          throw .insecure("the server's proof is not accepted: \(reason)")
        }
        return true
      case .failed(let fault): throw .insecure("TLS: \(fault)")
      case .wantsRead, .wantsWrite, .closed: break
      }
      // What the server said before it left may be the alert that tells why.
      switch inner.receive(into: &ciphertext) {
      case .bytes(let count): stream.take(ciphertext[..<count])
      case .wouldBlock where isOpen: return false
      case .wouldBlock, .closed: throw .lost("the server closed the connection during TLS")
      }
    }
  }

  func receive(into bytes: inout [UInt8]) -> StreamSocket.Transfer {
    while endReason == nil {
      switch stream.receive(into: &bytes) {
      case .bytes(let count): return .bytes(count)
      case .closed: endReason = "the server ended TLS"
      case .failed(let fault):
        // The server is told why, if it still listens.
        _ = flush()
        endReason = "TLS: \(fault)"
      case .wantsRead, .wantsWrite:
        switch inner.receive(into: &ciphertext) {
        case .bytes(let count): stream.take(ciphertext[..<count])
        case .wouldBlock: return .wouldBlock
        case .closed: endReason = "the server closed the connection without ending TLS"
        }
      }
    }
    return .closed
  }

  func send(_ bytes: ArraySlice<UInt8>) -> StreamSocket.Transfer {
    guard flush() else { return .closed }
    guard !bytes.isEmpty else { return .bytes(0) }
    do throws(TLSFault) {
      let count = try stream.send(bytes)
      guard flush() else { return .closed }
      return count > 0 ? .bytes(count) : .wouldBlock
    } catch {
      return .closed
    }
  }

  func sayGoodbye() -> Bool {
    stream.sayGoodbye()
    return flush()
  }

  /// Sends what waits, as far as the socket takes it; false when nobody takes it any more.
  private func flush() -> Bool {
    while stream.hasWaiting {
      switch inner.send(stream.waiting) {
      case .bytes(let count): stream.forget(count)
      case .wouldBlock: return true
      case .closed: return false
      }
    }
    return true
  }
}
