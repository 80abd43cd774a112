// SPDX-License-Identifier: Apache-2.0
//
// An address to listen on, written as the URI by which clients name it. Source: uri.md of the NBD
// project. This file performs no I/O.

import NBDProtocol

extension AddressConfig {
  /// Adds the address of `text`, such as `nbd://127.0.0.1:10809` or
  /// `nbd+unix:///?socket=/run/vm1.sock`.
  ///
  /// - Throws: when it is no NBD URI, or says what is not an address: the name of an export is that
  ///   of `--export-name`, and TLS is for `--tls` to decide.
  public mutating func add(uri text: String) throws(ControlError) {
    let uri: NBDURI
    do throws(NBDURIFault) {
      uri = try NBDURI(text)
    } catch {
      throw ControlError("--listen", "\(error)")
    }
    guard !uri.requiresTLS else {
      throw ControlError(
        "--listen", "'\(text)' asks for TLS, which is not for one address",
        wayOut: "write nbd, nbd+unix or nbd+vsock, and say --tls required")
    }
    guard uri.exportName.isEmpty else {
      throw ControlError(
        "--listen", "'\(text)' names an export, and an address leads to all of them",
        wayOut: "leave the name out of the URI, and say --export-name")
    }
    switch uri.endpoint {
    case .tcp(let host, let port):
      // Without a host a client means its own machine.
      tcpEndpoints.append(TCPEndpoint(host: host ?? "localhost", port: port))
    case .unix(let path):
      socketPaths.append(path.utf8.first == 0 ? "@\(path.dropFirst())" : path)
    case .vsock(_, let port): vsockPorts.append(port)
    }
  }
}
