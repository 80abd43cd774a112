// SPDX-License-Identifier: Apache-2.0
//
// Credentials and rules for clients, from the files that the user named: at the start, and again
// when the user asks. The layout of the folder is QEMU's. Source: docs/system/tls.rst.

import DataPlane
import LinuxIO
import NBDProtocol
import Sandbox
import TLS

/// Makes `ReceptionRules`. Once privileges are given up it goes on by its keeper of files.
final class RulesLoader {
  private let config: ServerConfig
  /// Vacant when no file has to be read.
  private var keeper = FixedPool<FileKeeper>(capacity: 1)
  /// Users and groups by number: their names are looked up once, while that is possible.
  private let users: [(userIDs: Set<UInt32>, groupIDs: Set<UInt32>)]

  /// Looks names up and starts the keeper. The process must have one thread; `config` is valid.
  init(_ config: ServerConfig) throws(ControlError) {
    self.config = config
    var users: [(userIDs: Set<UInt32>, groupIDs: Set<UInt32>)] = []
    for export in config.exports { users.append(try RulesLoader.numbers(export.access)) }
    self.users = users
    let paths = RulesLoader.paths(config)
    if !paths.isEmpty { _ = keeper.insert(try FileKeeper(paths)) }
  }

  /// What is in force from now on.
  ///
  /// - Throws: what is wrong with a file.
  func load() throws(ControlError) -> ReceptionRules {
    var access: [(Caller) -> ExportAccess] = []
    for (index, export) in config.exports.enumerated() {
      access.append(try rule(export.access, users[index].userIDs, users[index].groupIDs))
    }
    return ReceptionRules(tls: try tlsPlan(), access: access)
  }

  // MARK: Who may use an export

  private func rule(
    _ access: AccessConfig, _ userIDs: Set<UInt32>, _ groupIDs: Set<UInt32>
  ) throws(ControlError) -> (Caller) -> ExportAccess {
    var rule = PeerAccess()
    rule.requiresTLS = access.requiresTLS(config.tls)
    rule.allowedNames = access.asksForNames ? access.allowedNames : nil
    rule.allowedIdentities = access.allowedIdentities
    rule.allowedUserIDs = userIDs
    rule.allowedGroupIDs = groupIDs
    var lists: [NameList] = []
    for path in access.allowedNamesPaths {
      lists.append(
        try NameList(path) { [unowned self] (path) throws(ControlError) in try read(path) })
    }
    guard !lists.isEmpty else { return { [rule] in rule.access(of: $0) } }
    return { [rule] caller in
      var rule = rule
      if caller.tls != nil { rule.allowedNames? += lists.flatMap(\.patterns) }
      return rule.access(of: caller)
    }
  }

  private static func numbers(
    _ access: AccessConfig
  ) throws(ControlError) -> (userIDs: Set<UInt32>, groupIDs: Set<UInt32>) {
    var userIDs: Set<UInt32> = []
    var groupIDs: Set<UInt32> = []
    for name in access.allowedUsers {
      guard let number = Identity.userID(named: name) else {
        throw ControlError("--allow-uid", "there is no user '\(name)'")
      }
      userIDs.insert(number)
    }
    for name in access.allowedGroups {
      guard let number = Identity.groupID(named: name) else {
        throw ControlError("--allow-gid", "there is no group '\(name)'")
      }
      groupIDs.insert(number)
    }
    return (userIDs, groupIDs)
  }

  // MARK: Credentials

  private func tlsPlan() throws(ControlError) -> TLSPlan? {
    let policy = config.tlsPolicy
    guard policy != .off else { return nil }
    let credentials: TLSCredentials
    if let path = config.tls.keysPath {
      credentials = try keys(path)
    } else if let folder = config.tls.certificatesPath {
      credentials = try certificates(folder)
    } else {
      preconditionFailure("TLS is on without credentials")
    }
    return TLSPlan(policy: policy, credentials: credentials)
  }

  private func keys(_ path: String) throws(ControlError) -> TLSCredentials {
    let text = try read(path)
    do throws(TLSFault) {
      return try TLSCredentials(
        keys: try PSKTable(parsing: text), role: .server, priority: config.tls.priority)
    } catch {
      throw ControlError(path, "\(error)", wayOut: "write it with psktool(1)")
    }
  }

  private func certificates(_ folder: String) throws(ControlError) -> TLSCredentials {
    let names = RulesLoader.certificateNames.map { "\(folder)/\($0)" }
    let files = TLSCredentials.CertificateFiles(
      authorities: try read(names[0]), revocations: try keeper[0].readIfThere(names[1]),
      certificate: try read(names[2]), key: try read(names[3]))
    do throws(TLSFault) {
      return try TLSCredentials(
        files, role: .server, verifiesPeer: config.tls.verifiesPeer,
        priority: config.tls.priority)
    } catch {
      throw ControlError(folder, "\(error)")
    }
  }

  // MARK: Files

  private static let certificateNames = [
    "ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem",
  ]

  /// Every file that is ever read.
  private static func paths(_ config: ServerConfig) -> [String] {
    var paths = config.exports.flatMap(\.access.allowedNamesPaths)
    guard config.tlsPolicy != .off else { return paths }
    if let path = config.tls.keysPath { paths.append(path) }
    if let folder = config.tls.certificatesPath {
      paths += certificateNames.map { "\(folder)/\($0)" }
    }
    return paths
  }

  private func read(_ path: String) throws(ControlError) -> [UInt8] { try keeper[0].read(path) }
}
