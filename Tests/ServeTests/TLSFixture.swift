// SPDX-License-Identifier: Apache-2.0
//
// A server with TLS and the clients that tests use: QEMU's tools, libnbd's, and Python's own TLS
// (OpenSSL) for clients that are wrong on purpose.

import Foundation
import TestSupport

/// A disk served under TLS.
struct TLSFixture {
  let serve: ServeFixture

  /// - Parameter byteCount: of the disk, which is raw.
  init(byteCount: Int = 1 << 20) throws {
    serve = try ServeFixture()
    guard truncate(serve.image, byteCount) == 0 else { throw ServeError("truncate") }
  }

  var socket: String { serve.socket }

  /// Starts the server with the certificates of `folder`.
  func start(_ folder: CertificateFolder, _ more: String...) throws -> ServedProcess {
    try ServedProcess(
      stratad: serve.arguments + ["--tls-certificates", folder.serverPath] + more
    ).waitUntilReady()
  }

  /// Starts the server with the keys of `text`.
  func start(keys text: String, _ more: String...) throws -> ServedProcess {
    let path = serve.folder.path("server.psk")
    try text.write(toFile: path, atomically: false, encoding: .utf8)
    return try ServedProcess(stratad: serve.arguments + ["--tls-psk", path] + more).waitUntilReady()
  }

  /// The URI of libnbd for a client with certificates.
  func uri(certificates: String) -> String {
    "nbds+unix:///?socket=\(socket)&tls-certificates=\(certificates)"
  }

  func uri(keys: String, identity: String) -> String {
    "nbds+unix://\(identity)@/?socket=\(socket)&tls-psk-file=\(keys)"
  }

  /// QEMU's words for a client with certificates.
  func qemu(certificates: String) -> [String] {
    [
      "--object", "tls-creds-x509,id=tls0,endpoint=client,dir=\(certificates)", "--image-opts",
      "driver=nbd,server.type=unix,server.path=\(socket),tls-creds=tls0"
        + ",tls-hostname=localhost",
    ]
  }

  /// QEMU's words for a client with a key: `folder` holds keys.psk.
  func qemu(keys folder: String, identity: String) -> [String] {
    [
      "--object", "tls-creds-psk,id=tls0,endpoint=client,dir=\(folder),username=\(identity)",
      "--image-opts", "driver=nbd,server.type=unix,server.path=\(socket),tls-creds=tls0",
    ]
  }

  /// Runs `body` of Python with the helpers below and returns what it printed.
  func python(_ body: String, certificates: String = "") throws -> String {
    let words = ["/usr/bin/python3", "-c", TLSFixture.helpers + body, socket, certificates]
    let result = try runTool(words)
    guard result.code == 0 else { throw ServeError(result.error) }
    return result.output
  }

  /// A client of NBD in a few lines.
  private static let helpers = """
    import os, socket, ssl, struct, sys, time, warnings
    warnings.simplefilter('ignore')
    PATH, CERTS = sys.argv[1:3]
    ACK, POLICY, INVALID, TLS_REQD = 1, 0x80000002, 0x80000003, 0x80000005
    def option(number, data=b''):
        return b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data
    GO = option(7, struct.pack('>IH', 0, 0))
    def exact(s, count):
        data = b''
        while len(data) < count:
            more = s.recv(count - len(data))
            if not more: raise EOFError('after %d of %d' % (len(data), count))
            data += more
        return data
    def reply(s):
        magic, number, kind, count = struct.unpack('>QIII', exact(s, 20))
        assert magic == 0x3e889045565a9
        return number, kind, exact(s, count)
    def ask(s, *words):
        s.sendall(option(*words))
        while True:
            answer = reply(s)
            if answer[1] == ACK or answer[1] & 0x80000000: return answer
    def connect():
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(PATH)
        assert exact(s, 18)[:8] == b'NBDMAGIC'
        s.sendall(struct.pack('>I', 3))
        return s
    def context(certificate=True):
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        c.load_verify_locations(CERTS + '/ca-cert.pem')
        if certificate and os.path.exists(CERTS + '/client-cert.pem'):
            c.load_cert_chain(CERTS + '/client-cert.pem', CERTS + '/client-key.pem')
        return c
    def secure(s, c=None):
        assert ask(s, 5)[1] == ACK
        return (c or context()).wrap_socket(
            s, server_hostname='localhost', suppress_ragged_eofs=False)
    def enter(s):
        s.sendall(GO)
        while True:
            answer = reply(s)
            if answer[1] == ACK: return s
            assert answer[1] == 3, answer
    def request(command, cookie, offset, count, payload=b''):
        return struct.pack('>IHHQQI', 0x25609513, 0, command, cookie, offset, count) + payload
    def ended(s):
        try:
            return 'data' if s.recv(1) else 'end'
        except ssl.SSLEOFError:
            return 'truncated'
        except ssl.SSLError as error:
            return 'alert ' + str(error.reason)
        except ConnectionResetError:
            return 'reset'

    """
}
