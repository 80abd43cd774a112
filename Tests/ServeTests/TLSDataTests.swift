// SPDX-License-Identifier: Apache-2.0
//
// What goes through TLS is what comes out: many requests at once, large payloads, slow readers.

import Foundation
import TestSupport
import Testing

@Suite struct `Data under TLS` {
  private let fixture: TLSFixture
  private let folder: CertificateFolder
  private let client: String
  private static let byteCount = 48 << 20

  init() throws {
    fixture = try TLSFixture(byteCount: Self.byteCount)
    folder = try CertificateFolder()
    client = try folder.emptyClient("anybody")
  }

  private func nbd(_ body: String) throws -> (code: Int32, output: String, error: String) {
    try runTool(
      "/usr/bin/python3", "-c",
      """
      import nbd, os, random, sys, time
      def connect():
          h = nbd.NBD()
          h.set_tls(nbd.TLS_REQUIRE)
          h.set_tls_certificates(sys.argv[2])
          h.connect_unix(sys.argv[1])
          assert h.get_tls_negotiated()
          return h
      def settle(h, cookies):
          waiting = set(cookies)
          while waiting:
              done = {c for c in waiting if h.aio_command_completed(c)}
              waiting -= done
              if waiting and not done: h.poll(-1)

      """ + body, fixture.socket, client)
  }

  @Test func `survives random writes and reads, 64 at once, of 1 byte to 600 KiB`() throws {
    let server = try fixture.start(folder)
    let result = try nbd(
      """
      h = connect()
      rng = random.Random(20261123)
      size = h.get_size()
      cell = size // 64
      model = bytearray(size)
      for turn in range(6):
          cookies, keep = [], []
          for place in range(64):
              count = min(cell, rng.choice((1, 511, 4096, 16384, 16385, 70000, 600000)))
              start = place * cell + rng.randrange(cell - count + 1)
              data = rng.randbytes(count)
              model[start:start + count] = data
              buffer = nbd.Buffer.from_bytearray(bytearray(data))
              keep.append(buffer)
              cookies.append(h.aio_pwrite(buffer, start))
          settle(h, cookies)
          reads = []
          for place in range(64):
              count = min(cell, rng.choice((1, 512, 4096, 16384, 100000, 700000)))
              start = place * cell + rng.randrange(cell - count + 1)
              buffer = nbd.Buffer(count)
              reads.append((h.aio_pread(buffer, start), buffer, start, count))
          settle(h, [r[0] for r in reads])
          for _, buffer, start, count in reads:
              assert buffer.to_bytearray() == model[start:start + count], (turn, start, count)
      h.flush()
      h.shutdown()
      open(sys.argv[1] + '.model', 'wb').write(model)
      print('same')
      """)
    #expect(result.output == "same\n", "\(result.error)")
    #expect(server.stop() == 0)
    #expect(
      try runTool("cmp", fixture.serve.image, "\(fixture.socket).model").code == 0)
  }

  @Test func `survives requests of 32 MiB`() throws {
    let server = try fixture.start(folder)
    let result = try nbd(
      """
      h = connect()
      data = random.Random(7).randbytes(32 << 20)
      h.pwrite(data, 12345)
      print(h.pread(32 << 20, 12345) == data)
      """)
    #expect(result.output == "True\n", "\(result.error)")
    #expect(server.stop() == 0)
  }

  @Test func `survives nbdcopy with four connections in both directions`() throws {
    let server = try fixture.start(folder)
    let source = fixture.serve.folder.path("source")
    let target = fixture.serve.folder.path("target")
    try runTool(
      "/usr/bin/python3", "-c",
      """
      import random, sys
      open(sys.argv[1], 'wb').write(random.Random(1).randbytes(\(Self.byteCount)))
      """, source)
    let uri = fixture.uri(certificates: client)
    let up = try runTool("nbdcopy", "--connections=4", source, uri)
    #expect(up.code == 0, "\(up.error)")
    let down = try runTool("nbdcopy", "--connections=4", uri, target)
    #expect(down.code == 0, "\(down.error)")
    #expect(try runTool("cmp", source, target).code == 0)
    #expect(server.stop() == 0)
  }

  @Test func `reaches a client that reads slowly, and nobody else waits for it`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      slow = enter(secure(connect()))
      for cookie in range(64): slow.sendall(request(0, cookie, 0, 1 << 20))
      time.sleep(0.2)
      quick = enter(secure(connect()))
      begin = time.time()
      for turn in range(50):
          quick.sendall(request(0, turn, 0, 4096))
          exact(quick, 16 + 4096)
      print(time.time() - begin < 5)
      total = 0
      while total < 64 * (16 + (1 << 20)):
          total += len(slow.recv(200000))
          if total % 7 == 0: time.sleep(0.001)
      print(total == 64 * (16 + (1 << 20)))
      """, certificates: client)
    #expect(text == "True\nTrue\n")
    #expect(server.stop() == 0)
  }

  @Test func `arrives when requests and payloads are cut at any place`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      payload = bytes(range(256)) * 160
      stream = b''
      for turn in range(8):
          stream += request(1, turn, turn * 40960, 40960, payload)
      place, step = 0, 1
      while place < len(stream):
          s.sendall(stream[place:place + step])
          place += step
          step = step * 3 % 1021 + 1
      for turn in range(8):
          assert struct.unpack('>II', exact(s, 16)[:8])[1] == 0
      s.sendall(request(0, 9, 0, 8 * 40960))
      print(exact(s, 16 + 8 * 40960)[16:] == payload * 8)
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }

  // More requests in one record than a client may have in flight: the rest of the record waits in
  // the session, where no socket tells of it.
  @Test func `is answered in full when more requests come in one record than may be in flight`()
    throws
  {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      s = enter(secure(connect()))
      count = 580
      s.sendall(b''.join(request(0, c, c * 65536 % (32 << 20), 65536) for c in range(count)))
      seen = set()
      for turn in range(count):
          head = exact(s, 16)
          seen.add(struct.unpack('>IIQ', head)[2])
          exact(s, 65536)
      print(len(seen) == count)
      """, certificates: client)
    #expect(text == "True\n")
    #expect(server.stop() == 0)
  }

  @Test func `goes to 20 clients at once`() throws {
    let server = try fixture.start(folder)
    let text = try fixture.python(
      """
      clients = [enter(secure(connect())) for _ in range(20)]
      for number, s in enumerate(clients):
          s.sendall(request(1, 1, number << 16, 65536, bytes([number + 1]) * 65536))
      for s in clients: assert struct.unpack('>II', exact(s, 16)[:8])[1] == 0
      for number, s in enumerate(reversed(clients)):
          s.sendall(request(0, 2, number << 16, 65536))
          assert exact(s, 16 + 65536)[16:] == bytes([number + 1]) * 65536
      print('same')
      """, certificates: client)
    #expect(text == "same\n")
    #expect(server.stop() == 0)
  }
}
