// SPDX-License-Identifier: Apache-2.0
//
// The arrows between modules: which module may import which. Source: DESIGN.md 3.2, Package.swift.

import Foundation
import Testing

/// What each module of the product may import, besides Glibc.
private let arrows: [String: Set<String>] = [
  "BlockTypes": [],
  "NBDProtocol": ["BlockTypes"],
  "Qcow2": ["BlockTypes"],
  "Bitmaps": ["BlockTypes"],
  "ForeignImages": ["BlockTypes"],
  "LinuxIO": ["BlockTypes", "CAio", "CLinux", "Synchronization"],
  "Sandbox": ["BlockTypes", "CCapNG", "CLinux"],
  "TLS": ["BlockTypes", "CGnuTLS"],
  "Encryption": ["BlockTypes", "CGnuTLS"],
  "Compression": ["BlockTypes", "CZlib", "CZstd"],
  "DataPlane": [
    "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "TLS", "Compression",
    "Synchronization",
  ],
  // The mailbox between tasks and a connection's thread is a mutex.
  "NBDClient": ["BlockTypes", "NBDProtocol", "LinuxIO", "TLS", "Synchronization"],
  "KernelNBD": ["NBDProtocol", "LinuxIO"],
  // A conversion's threads share its plan behind a mutex.
  "ImageTools": [
    "BlockTypes", "Qcow2", "ForeignImages", "LinuxIO", "Compression", "Encryption",
    "Synchronization",
  ],
  // No NBDProtocol: the judge has its own numbers and codecs (tools/decisions/0014).
  "NBDLint": ["LinuxIO", "TLS", "ImageTools"],
  "Control": [
    "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "TLS", "Sandbox", "DataPlane",
    // The exports that are opened as images are behind a mutex.
    "ImageTools", "NBDClient", "Synchronization",
  ],
  "stratad": [
    "Control", "ImageTools", "DataPlane", "Bitmaps", "LinuxIO", "BlockTypes", "ArgumentParser",
  ],
  "strata": [
    "Control", "ImageTools", "NBDClient", "KernelNBD", "NBDLint", "NBDProtocol", "LinuxIO", "TLS",
    "BlockTypes", "Bitmaps", "Qcow2", "ForeignImages", "Synchronization", "ArgumentParser",
  ],
]

/// Modules that may call the C library by themselves; the pure ones may not.
private let systemModules: Set<String> = [
  "LinuxIO", "Sandbox", "Compression", "Encryption", "DataPlane", "KernelNBD", "ImageTools",
  "Control", "stratad", "strata",
]

private func imports(of source: SourceText) -> [String] {
  source.code.compactMap { line in
    let words = line.split(separator: " ").map(String.init)
    guard let index = words.firstIndex(of: "import"), index + 1 < words.count else { return nil }
    let attributes = words[..<index]
    guard attributes.allSatisfy({ $0.hasPrefix("@") || $0 == "public" || $0 == "internal" }) else {
      return nil
    }
    return words[words.count - 1].split(separator: ".").first.map(String.init)
  }
}

@Suite struct `arrows between modules` {
  @Test func `each module imports only what the table allows`() throws {
    for source in try Repository.sources() {
      let module = try #require(source.module, "\(source) is in no module")
      let allowed = try #require(arrows[module], "module \(module) is not in the table")
      for name in imports(of: source) where name != module {
        let isSystem = name == "Glibc" && systemModules.contains(module)
        #expect(isSystem || allowed.contains(name), "\(source) may not import \(name)")
      }
    }
  }

  @Test func `each arrow points to a module that exists`() {
    let outside: Set = [
      "CAio", "CLinux", "CCapNG", "CGnuTLS", "CZlib", "CZstd", "Synchronization", "ArgumentParser",
    ]
    for (module, targets) in arrows {
      for target in targets.subtracting(outside) {
        #expect(arrows[target] != nil, "\(module) → \(target)")
      }
    }
  }

  @Test(arguments: ["CAio", "CCapNG", "CGnuTLS", "CZlib", "CZstd"])
  func `a C library is imported in at most two files of one module`(library: String) throws {
    let users = try Repository.sources().filter { imports(of: $0).contains(library) }
    // Sessions and ciphers share nothing but the library (tools/decisions/0027).
    let modules: Set<String?> =
      library == "CGnuTLS" ? ["TLS", "Encryption"] : [users.first?.module]
    #expect(Set(users.map(\.module)).isSubset(of: modules), "\(library) is imported by \(users)")
    for module in modules {
      let files = users.filter { $0.module == module }
      #expect(files.count <= 2, "\(library) is imported by \(files)")
    }
  }

  @Test func `only LinuxIO and Sandbox import CLinux`() throws {
    let users = try Repository.sources().filter { imports(of: $0).contains("CLinux") }
    #expect(Set(users.compactMap(\.module)).isSubset(of: ["LinuxIO", "Sandbox"]))
  }
}
