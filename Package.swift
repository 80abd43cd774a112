// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
//
// The targets of Strata, layer by layer. An arrow only ever points to a lower layer;
// `Tests/TidyTests` reads this file and the imports of every source and fails on any other arrow.

import PackageDescription

/// Every product target: Swift 6 language mode, strict memory safety, warnings are errors.
let strict: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableExperimentalFeature("Lifetimes"),
]

/// Test targets poke at raw bytes on purpose, so they are not strict-memory-safe.
let tests: [SwiftSetting] = [.swiftLanguageMode(.v6)]

let argumentParser: Target.Dependency = .product(
  name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
  name: "strata",
  products: [
    .executable(name: "strata", targets: ["strata"]),
    .executable(name: "stratad", targets: ["stratad"]),
    .library(name: "NBDClient", targets: ["NBDClient"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0")
  ],
  targets: [
    // L0: C only. Shims return -errno and hold no policy.
    .target(name: "CAio", linkerSettings: [.linkedLibrary("aio")]),
    .target(name: "CLinux"),
    .systemLibrary(name: "CCapNG", pkgConfig: "libcap-ng", providers: [.apt(["libcap-ng-dev"])]),
    // Its library is loaded when TLS or a cipher is asked for, and not linked.
    .target(name: "CGnuTLS"),
    .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
    // Its library (libzstd-dev) is loaded when an image needs it, and not linked.
    .target(name: "CZstd"),

    // L1: the vocabulary.
    .target(name: "BlockTypes", swiftSettings: strict),

    // L2: pure (no system call, no clock, no Foundation) and kernel objects.
    .target(name: "NBDProtocol", dependencies: ["BlockTypes"], swiftSettings: strict),
    .target(name: "Qcow2", dependencies: ["BlockTypes"], swiftSettings: strict),
    .target(name: "Bitmaps", dependencies: ["BlockTypes"], swiftSettings: strict),
    .target(name: "ForeignImages", dependencies: ["BlockTypes"], swiftSettings: strict),
    .target(
      name: "LinuxIO", dependencies: ["BlockTypes", "CAio", "CLinux"], swiftSettings: strict),
    .target(
      name: "Sandbox", dependencies: ["BlockTypes", "CCapNG", "CLinux"], swiftSettings: strict),
    .target(name: "TLS", dependencies: ["BlockTypes", "CGnuTLS"], swiftSettings: strict),
    .target(name: "Encryption", dependencies: ["BlockTypes", "CGnuTLS"], swiftSettings: strict),
    .target(
      name: "Compression", dependencies: ["BlockTypes", "CZlib", "CZstd"], swiftSettings: strict),

    // L3: the hot path.
    .target(
      name: "DataPlane",
      dependencies: [
        "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "TLS", "Compression",
      ],
      swiftSettings: strict),

    // L4: the other side of the wire. Uses Swift concurrency; one thread for each connection.
    .target(
      name: "NBDClient", dependencies: ["BlockTypes", "NBDProtocol", "LinuxIO", "TLS"],
      swiftSettings: strict),

    // L4: the kernel's nbd driver.
    .target(
      name: "KernelNBD", dependencies: ["NBDProtocol", "LinuxIO"], swiftSettings: strict),

    // L4: images at rest.
    .target(
      name: "ImageTools",
      dependencies: [
        "BlockTypes", "Qcow2", "ForeignImages", "LinuxIO", "Compression", "Encryption",
      ],
      swiftSettings: strict),

    .target(
      name: "NBDLint", dependencies: ["LinuxIO", "TLS", "ImageTools"], swiftSettings: strict),

    // L5: policy.
    .target(
      name: "Control",
      dependencies: [
        "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "TLS", "Sandbox", "DataPlane",
        "ImageTools", "NBDClient",
      ],
      swiftSettings: strict),

    // L6: the executables.
    .executableTarget(
      name: "stratad", dependencies: ["Control", "ImageTools", "Bitmaps", argumentParser],
      swiftSettings: strict),
    .executableTarget(
      name: "strata",
      dependencies: [
        "Control", "ImageTools", "ForeignImages", "Bitmaps", "NBDClient", "KernelNBD", "NBDLint",
        "TLS",
        argumentParser,
      ],
      swiftSettings: strict),

    // T: tests of the wire protocol.
    .testTarget(
      name: "NBDProtocolTests", dependencies: ["BlockTypes", "NBDProtocol", "TestSupport"],
      exclude: ["Golden"], swiftSettings: tests),

    // T: the client, against scripted servers and against those that people use.
    .testTarget(
      name: "NBDClientTests",
      dependencies: [
        "BlockTypes", "NBDProtocol", "LinuxIO", "NBDClient", "TLS", "TestSupport", "strata",
        "stratad",
      ],
      swiftSettings: tests),

    // T: the kernel's driver as far as it goes without one; tools/guest/suite has the rest.
    .testTarget(
      name: "KernelNBDTests",
      dependencies: [
        "NBDProtocol", "LinuxIO", "NBDClient", "KernelNBD", "TestSupport", "strata", "stratad",
      ],
      swiftSettings: tests),

    // T: the rules of tools/STYLE.md and the arrows above.
    .testTarget(name: "TidyTests", swiftSettings: tests),
    .target(
      name: "TestSupport", dependencies: ["TLS"], path: "Tests/TestSupport", swiftSettings: tests),
    // Black box: needs the built daemon, imports none of its code; lint has its own.
    .testTarget(
      name: "ConformanceTests", dependencies: ["NBDLint", "TLS", "TestSupport", "stratad"],
      swiftSettings: tests),

    // T: the corpus and the standard clients, in both directions.
    .testTarget(
      name: "InteropTests", dependencies: ["TestSupport", "strata", "stratad"],
      swiftSettings: tests),

    // T: the export process, from the inside and as a black box.
    .testTarget(name: "SandboxTests", dependencies: ["Sandbox"], swiftSettings: tests),
    .testTarget(
      name: "TLSTests", dependencies: ["BlockTypes", "TLS", "CGnuTLS", "TestSupport"],
      swiftSettings: tests),
    .testTarget(
      name: "ControlTests",
      dependencies: [
        "BlockTypes", "NBDProtocol", "Bitmaps", "LinuxIO", "TLS", "Sandbox", "DataPlane",
        "ImageTools", "Control",
      ],
      swiftSettings: tests),
    .testTarget(
      name: "ServeTests", dependencies: ["TestSupport", "strata", "stratad"],
      swiftSettings: tests),

    // T: the judge, before right servers and before wrong ones.
    .testTarget(
      name: "NBDLintTests", dependencies: ["NBDLint", "TLS", "TestSupport", "strata", "stratad"],
      swiftSettings: tests),

    // T: images, their headers, tables and verbs; QEMU's tools are the peers.
    .testTarget(name: "Qcow2Tests", dependencies: ["BlockTypes", "Qcow2"], swiftSettings: tests),
    .testTarget(
      name: "EncryptionTests", dependencies: ["BlockTypes", "Encryption"], swiftSettings: tests),
    .testTarget(
      name: "BitmapsTests", dependencies: ["BlockTypes", "Bitmaps"], swiftSettings: tests),
    .testTarget(
      name: "ImageToolsTests",
      dependencies: [
        "BlockTypes", "Qcow2", "LinuxIO", "Compression", "ImageTools", "strata", "stratad",
      ],
      swiftSettings: tests),

    // T: the ground under the data plane, the data plane without sockets, and what the whole does
    // with memory and with broken disks.
    .testTarget(
      name: "LinuxIOTests", dependencies: ["BlockTypes", "LinuxIO", "TestSupport"],
      swiftSettings: tests),
    .testTarget(
      name: "DataPlaneTests",
      dependencies: [
        "BlockTypes", "NBDProtocol", "Qcow2", "Bitmaps", "LinuxIO", "ImageTools", "DataPlane",
        "TestSupport",
      ],
      swiftSettings: tests),
    // T: the same on simulated disks, from seeds; tools/simulate runs more of them.
    .testTarget(
      name: "SimulationTests",
      dependencies: [
        "BlockTypes", "NBDProtocol", "Qcow2", "LinuxIO", "ImageTools", "DataPlane",
      ],
      swiftSettings: tests),
    .testTarget(
      name: "AllocationTests", dependencies: ["TestSupport", "stratad"],
      exclude: ["malloccount.c"], swiftSettings: tests),
    .testTarget(
      name: "FaultTests", dependencies: ["TestSupport", "stratad"], swiftSettings: tests),
  ]
)
