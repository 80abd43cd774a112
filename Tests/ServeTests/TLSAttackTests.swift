// SPDX-License-Identifier: Apache-2.0
//
// Clients that break TLS, or the way into it. Source: CVE-2021-3716, proto.md "TLS support".

import Foundation
import TestSupport
import Testing

@Suite struct `A client that misuses TLS` {
  private let fixture: TLSFixture
  private let folder: CertificateFolder
  private let client: String

  init() throws {
    fixture = try TLSFixture()
    folder = try CertificateFolder()
    client = try folder.emptyClient("anybody")
  }

  private func isServed() throws -> Bool {
    try runTool("nbdinfo", "--size", fixture.uri(certificates: client)).output == "1048576\n"
  }

  // tls.plain-inject
  @Test func `by options behind STARTTLS in one packet is cut off, CVE-2021-3716`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      for extra in (b'\\x16', option(3), option(8), GO):
          s = connect()
          s.sendall(option(5) + extra)
          try:
              assert reply(s)[1] == ACK
              print(s.recv(1))
          except (EOFError, ConnectionResetError):
              print(b'')
      """)
    #expect(text == String(repeating: "b''\n", count: 4))
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  // tls.state-dropped
  @Test func `by what it negotiated in plain text gains nothing, CVE-2021-3716`() throws {
    let server = try fixture.start(folder, "--tls", "offered")
    let text = try fixture.python(
      """
      s = connect()
      assert ask(s, 8)[1] == ACK
      name = b'base:allocation'
      meta = struct.pack('>III', 0, 1, len(name)) + name
      assert ask(s, 10, meta)[1] == ACK
      s = secure(s)
      print(hex(ask(s, 10, meta)[1]))
      enter(s)
      s.sendall(request(0, 7, 0, 512))
      print(hex(struct.unpack('>I', exact(s, 4))[0]))
      exact(s, 12 + 512)
      s.sendall(request(7, 8, 0, 512))
      print(struct.unpack('>II', exact(s, 16)[:8])[1])
      """, certificates: client)
    #expect(text == "0x80000003\n0x67446698\n22\n", "a simple reply, and BLOCK_STATUS refused")
    #expect(server.stop() == 0)
  }

  @Test func `by STARTTLS under TLS is told that it is invalid, and goes on`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      "s = secure(connect()); print(hex(ask(s, 5)[1])); enter(s); print('in')",
      certificates: client)
    #expect(text == "0x80000003\nin\n")
    #expect(server.stop() == 0)
  }

  @Test(arguments: ["TLSv1", "TLSv1_1"])
  func `of an old version is refused`(version: String) throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      c = context()
      c.minimum_version = c.maximum_version = ssl.TLSVersion.\(version)
      c.set_ciphers('ALL:@SECLEVEL=0')
      try:
          secure(connect(), c)
          print('in')
      except (ssl.SSLError, ConnectionResetError) as error:
          print('refused', error)
      """, certificates: client)
    #expect(text.contains("refused"))
    #expect(text.uppercased().contains("VERSION"), "\(text)")
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  @Test(arguments: ["1_2", "1_3"])
  func `in no way, of a newer version, is served`(version: String) throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      c = context()
      c.minimum_version = c.maximum_version = ssl.TLSVersion.TLSv\(version)
      s = enter(secure(connect(), c))
      s.sendall(request(0, 7, 0, 4096))
      exact(s, 16 + 4096)
      print(s.version())
      """, certificates: client)
    #expect(text == "TLSv\(version.replacingOccurrences(of: "_", with: "."))\n")
    #expect(server.stop() == 0)
  }

  @Test func `of a version that the priority leaves out is refused`() throws {
    let server = try fixture.start(
      folder, "--tls-priority", "NORMAL:-VERS-ALL:+VERS-TLS1.3")
    let text = try fixture.python(
      """
      c = context()
      c.maximum_version = ssl.TLSVersion.TLSv1_2
      try:
          secure(connect(), c)
          print('in')
      except (ssl.SSLError, ConnectionResetError) as error:
          print('refused')
      """, certificates: client)
    #expect(text == "refused\n")
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  // Clients that never negotiate, and a stop with them connected.
  @Test func `by 60 handshakes that stop in the middle holds up nobody, CVE-2024-7409`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      silent = []
      for number in range(60):
          s = connect()
          assert ask(s, 5)[1] == ACK
          s.sendall(b'\\x16\\x03\\x01\\x02\\x00\\x01'[:number % 7])
          silent.append(s)
      s = enter(secure(connect()))
      begin = time.time()
      for turn in range(100):
          s.sendall(request(0, turn, 0, 4096))
          exact(s, 16 + 4096)
      print(time.time() - begin < 5)
      begin = time.time()
      os.kill(\(server.processID), 15)
      print(ended(s), time.time() - begin < 2)
      """, certificates: client)
    #expect(text == "True\nend True\n")
    #expect(try server.waitForExit() == 0)
  }

  @Test func `by silence in the middle of the handshake is cut off in time`() throws {
    let server = try fixture.start(folder, "--handshake-timeout", "1")
    let text = try fixture.python(
      """
      class Kept(Exception): pass
      def hello():
          incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
          t = context().wrap_bio(incoming, outgoing, server_hostname='localhost')
          try: t.do_handshake()
          except ssl.SSLWantReadError: pass
          return outgoing.read()
      begin = time.time()
      silent = []
      for part in (b'', hello()[:1], hello()[:100], hello()):
          s = connect()
          assert ask(s, 5)[1] == ACK
          s.sendall(part)
          silent.append(s)
      for s in silent:
          try:
              while s.recv(65536): pass
          except ConnectionResetError: pass
      print(0.5 < time.time() - begin < 4)
      """, certificates: client)
    #expect(text == "True\n")
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  @Test func `by bytes that are no TLS is cut off with an alert`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = connect()
      assert ask(s, 5)[1] == ACK
      s.sendall(GO * 4)
      data = b''
      try:
          while True:
              more = s.recv(4096)
              if not more: break
              data += more
      except ConnectionResetError: pass
      print(data[:1])
      """)
    #expect(text == "b'\\x15'\n" || text == "b''\n", "\(text)")
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  @Test func `by hanging up without a goodbye loses nothing that was answered`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      s.sendall(request(1, 1, 4096, 8192, b'\\xa5' * 8192))
      assert struct.unpack('>II', exact(s, 16)[:8])[1] == 0
      # Half of a write, and gone.
      s.sendall(request(1, 2, 0, 8192, b'\\xff' * 100))
      s.detach()
      s = enter(secure(connect()))
      s.sendall(request(0, 3, 0, 16384))
      data = exact(s, 16 + 16384)[16:]
      print(data == bytes(4096) + b'\\xa5' * 8192 + bytes(4096))
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }

  @Test func `by a record that was changed on the way is told by an alert`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      # Past OpenSSL: what looks like a record of this session, and is not.
      raw = socket.socket(fileno=os.dup(s.fileno()))
      raw.sendall(b'\\x17\\x03\\x03\\x00\\x40' + bytes(64))
      print(ended(s))
      """, certificates: client)
    #expect(text.contains("BAD_RECORD_MAC"), "\(text)")
    #expect(try isServed())
    #expect(server.stop() == 0)
  }

  // A record that is cut short on the way is not taken for the end of a request.
  @Test func `by half of a record and the end of the stream is forgotten`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = connect()
      assert ask(s, 5)[1] == ACK
      incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
      t = context().wrap_bio(incoming, outgoing, server_hostname='localhost')
      def flush():
          data = outgoing.read()
          if data: s.sendall(data)
      while True:
          try:
              t.do_handshake()
              break
          except ssl.SSLWantReadError:
              flush()
              incoming.write(s.recv(65536))
      t.write(GO)
      flush()
      data = b''
      while len(data) < 32 + 20:
          try: data += t.read(65536)
          except ssl.SSLWantReadError: incoming.write(s.recv(65536))
      t.write(request(1, 2, 0, 4096, b'\\xff' * 4096))
      record = outgoing.read()
      s.sendall(record[:-1])
      s.shutdown(socket.SHUT_WR)
      while s.recv(65536): pass
      s = enter(secure(connect()))
      s.sendall(request(0, 3, 0, 4096))
      print(exact(s, 16 + 4096)[16:] == bytes(4096))
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }
}

@Suite struct `The end of a session under TLS` {
  private let fixture: TLSFixture
  private let folder: CertificateFolder
  private let client: String

  init() throws {
    fixture = try TLSFixture()
    folder = try CertificateFolder()
    client = try folder.emptyClient("anybody")
  }

  @Test func `after DISC is a goodbye, behind all replies`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      s.sendall(request(0, 1, 0, 500000) + request(2, 2, 0, 0))
      exact(s, 16 + 500000)
      print(ended(s))
      """, certificates: client)
    #expect(text == "end\n")
    #expect(server.stop() == 0)
  }

  @Test func `after the client's goodbye is a goodbye too, behind what it had asked`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = connect()
      assert ask(s, 5)[1] == ACK
      incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
      t = context().wrap_bio(incoming, outgoing, server_hostname='localhost')
      while True:
          try:
              t.do_handshake()
              break
          except ssl.SSLWantReadError:
              s.sendall(outgoing.read())
              incoming.write(s.recv(65536))
      t.write(GO + request(0, 1, 0, 300000))
      try: t.unwrap()
      except ssl.SSLWantReadError: pass
      s.sendall(outgoing.read())
      total = 0
      while True:
          data = s.recv(65536)
          if not data: break
          total += len(data)
          last = data
      print(total > 300000)
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }

  @Test func `after ABORT is a goodbye`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      "s = secure(connect()); print(ask(s, 2)[1] == ACK); print(ended(s))",
      certificates: client)
    #expect(text == "True\nend\n")
    #expect(server.stop() == 0)
  }

  @Test func `when the server stops is a goodbye, too`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      os.kill(\(server.processID), 15)
      print(ended(s))
      """, certificates: client)
    #expect(text == "end\n")
    #expect(try server.waitForExit() == 0)
  }

  @Test func `comes within four seconds when a client never reads`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      for cookie in range(32): s.sendall(request(0, cookie, 0, 1 << 20))
      time.sleep(0.3)
      begin = time.time()
      os.kill(\(server.processID), 15)
      while os.path.exists('/proc/\(server.processID)/exe') and time.time() - begin < 10:
          time.sleep(0.05)
          if open('/proc/\(server.processID)/stat').read().split()[2] == 'Z': break
      print(time.time() - begin < 4)
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }
}
