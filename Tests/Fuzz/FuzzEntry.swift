// SPDX-License-Identifier: Apache-2.0
//
// What libFuzzer calls. `STRATA_FUZZ_TARGET` says which of the targets its inputs are for; one
// program holds them all. Source: llvm.org/docs/LibFuzzer.html.

import Glibc

enum FuzzTarget: String, CaseIterable {
  case serverHandshake = "ServerHandshake"
  case clientHandshake = "ClientHandshake"
  case requests = "Requests"
  case replies = "Replies"
  case addresses = "NBDURI"
  case json = "JSON"
  case encryption = "LUKS"
  case foreignImages = "ForeignImages"
  case image = "Image"

  func run(_ bytes: [UInt8]) {
    switch self {
    case .serverHandshake: fuzzServerHandshake(bytes)
    case .clientHandshake: fuzzClientHandshake(bytes)
    case .requests: fuzzRequests(bytes)
    case .replies: fuzzReplies(bytes)
    case .addresses: fuzzAddress(bytes)
    case .json: fuzzJSON(bytes)
    case .encryption: fuzzEncryptionHeader(bytes)
    case .foreignImages: fuzzForeignImage(bytes)
    case .image: fuzzImage(bytes)
    }
  }
}

private let target: FuzzTarget = {
  guard let name = getenv("STRATA_FUZZ_TARGET"),
    let target = FuzzTarget(rawValue: String(cString: name))
  else {
    let names = FuzzTarget.allCases.map(\.rawValue).joined(separator: ", ")
    fatalError("STRATA_FUZZ_TARGET is none of \(names)")
  }
  return target
}()

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
  target.run(Array(UnsafeBufferPointer(start: start, count: count)))
  return 0
}
