// SPDX-License-Identifier: Apache-2.0
//
// Configurations that are valid, to be made wrong.

import BlockTypes
import Control
import DataPlane

extension ExportConfig {
  static func valid(_ path: String = "/images/vm1.qcow2") -> ExportConfig {
    ExportConfig(
      imagePath: path, format: .qcow2, isReadOnly: false, engine: .aio, name: nil,
      description: "", minimumBlockByteCount: 1, metadataCacheByteCount: 32 << 20,
      pollMicroseconds: 0, connectionsMax: nil, patience: ClientPatience(), access: AccessConfig())
  }
}

extension ServerConfig {
  static func valid() -> ServerConfig {
    var addresses = AddressConfig(socketMode: 0o600)
    addresses.socketPaths = ["/run/vm1.sock"]
    return ServerConfig(
      exports: [.valid()], connectionsMax: 100, connectionsPerPeerMax: 100,
      handshakeSecondsMax: 10, addresses: addresses)
  }
}

/// The subject of what is wrong with the configuration that `change` makes; nil for nothing.
func refusal(_ change: (inout ServerConfig) -> Void) -> String? {
  var config = ServerConfig.valid()
  change(&config)
  do throws(ControlError) {
    try PlanCompiler.validate(config)
    return nil
  } catch {
    return error.subject
  }
}
