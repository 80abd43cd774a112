// SPDX-License-Identifier: Apache-2.0
//
// `strata key`: which keys open an encrypted image. Never shows a key, nor takes one as a word.

import ArgumentParser
import ImageTools

struct Key: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List, add and remove the keys of an encrypted image that nobody uses.",
    subcommands: [List.self, Add.self, Remove.self])

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Tell which key slots are in use.")

    @Option(help: "human or json.")
    var output = OutputFormat.human

    @Flag(
      name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
    var forceShare = false

    @Argument(help: "The image.")
    var file: String

    func run() throws {
      let slots = try KeySlots(path: file, access: .readOnly, takesLocks: !forceShare).slots
      guard output == .json else {
        for (index, slot) in slots.enumerated() {
          print("\(index)  " + (slot.isActive ? "\(slot.iterationCount) iterations" : "vacant"))
        }
        return
      }
      var json = JSONWriter()
      json.beginArray()
      for (index, slot) in slots.enumerated() {
        json.beginObject()
        json.field("slot", index)
        json.field("active", slot.isActive)
        if slot.isActive { json.field("iters", slot.iterationCount) }
        json.end()
      }
      json.end()
      print(json.finish())
    }
  }

  struct Add: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Make another key open the image.")

    @OptionGroup var key: KeyOptions

    @Option(help: ArgumentHelp("File with the new key.", valueName: "path"))
    var newKeyFile: String?

    @Option(
      help: ArgumentHelp("Descriptor that the new key can be read from.", valueName: "number"))
    var newKeyFd: Int32?

    @Option(help: "The key slot, 0 to 7; the first vacant one when left out.")
    var slot: Int?

    @Option(
      help: ArgumentHelp(
        "How long a try of the key is to be computed for.", valueName: "milliseconds"))
    var iterTime: UInt64 = 2_000

    @Argument(help: "The image.")
    var file: String

    func run() throws {
      guard (1...60_000).contains(iterTime) else {
        throw ValidationError("--iter-time: \(iterTime) is outside 1...60000")
      }
      var reader = KeyReader()
      let old = try reader.read(try key.required("--key-file or --key-fd"))
      let new = try reader.read(
        try KeyOptions.source(newKeyFile, newKeyFd, "--new-key-file", "--new-key-fd")
          ?? KeyOptions.missing("--new-key-file or --new-key-fd"))
      var slots = try KeySlots(path: file, access: .readWrite, takesLocks: true)
      let index = try slots.add(new, by: old, slot: slot, milliseconds: iterTime)
      print("The new key has slot \(index).")
    }
  }

  struct Remove: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Make a key worthless, and destroy its slot.")

    @OptionGroup var key: KeyOptions

    @Option(help: "The key slot, 0 to 7.")
    var slot: Int

    @Flag(help: "Ask for no key that is left; the image may be lost for ever.")
    var force = false

    @Argument(help: "The image.")
    var file: String

    func run() throws {
      var reader = KeyReader()
      let left = force ? nil : try reader.read(try key.required("--key-file or --key-fd"))
      var slots = try KeySlots(path: file, access: .readWrite, takesLocks: true)
      try slots.remove(slot: slot, provenBy: left)
    }
  }
}
