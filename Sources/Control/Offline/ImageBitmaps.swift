// SPDX-License-Identifier: Apache-2.0
//
// The bitmaps of an image that nobody serves: it is opened as for serving, does what a daemon would
// be asked to do, and is closed in order. Backing files are left alone.

import Bitmaps
import BlockTypes
import DataPlane
import ImageTools
import LinuxIO

/// Answers requests about bitmaps without a daemon.
public enum ImageBitmaps {
  /// Does what `request` says of bitmaps to the qcow2 image at `path`, all of it or nothing.
  ///
  /// - Returns: what a daemon would answer.
  /// - Throws: also when the request is refused, and when the result could not be stored.
  public static func ask(
    _ request: ControlRequest, at path: String
  ) throws(ControlError) -> (line: String, value: JSONValue) {
    let answers: Mailbox<ControlAnswer>
    do throws(SystemError) { answers = try Mailbox() } catch { throw ControlError(path, error) }
    let deliver: @Sendable (ControlAnswer) -> Void = { _ = answers.post($0) }
    switch request {
    case .bitmaps:
      try serve(path, .readOnly, .bitmaps { deliver(.bitmaps($0)) })
    case .changeBitmap(let action, _):
      try serve(path, .readWrite, change(try kept([action], path), deliver))
    case .transaction(let actions, _):
      try serve(path, .readWrite, change(try kept(actions, path), deliver))
    case .status, .exports, .clients, .kick, .reload, .resize, .snapshots, .changeSnapshot:
      throw ControlError(path, "this needs a daemon")
    }
    guard let answer = answers.takeAll().first else {
      throw ControlError(path, "the image was closed without an answer")
    }
    if case .refusal(let reason) = answer { throw ControlError(path, reason) }
    do throws(JSONFault) {
      return (answer.line, try JSONReader.read(Array(answer.line.utf8)))
    } catch {
      preconditionFailure("our own answer is no JSON: \(error.reason)")
    }
  }

  /// Calls `tell` with each run of dirty bytes of a bitmap that the image keeps, as it would be
  /// offered if the image were served now.
  public static func dirtyRuns(
    of name: String, at path: String, takesLocks: Bool, tell: (ByteRange) -> Void
  ) throws(ControlError) {
    let layers = try open(path, .readOnly, takesLocks: takesLocks)
    let bitmap: KeptBitmap
    do {
      bitmap = try KeptBitmap(named: name, of: PlanCompiler.offlinePlan(layers, isReadOnly: true))
    } catch {
      throw ControlError(path, "\(error)")
    }
    var cursor: UInt64 = 0
    while let run = bitmap.bits.nextDirtyRun(from: cursor) {
      tell(run)
      cursor = run.end
    }
  }

  private static func open(
    _ path: String, _ access: ImageFile.Access, takesLocks: Bool = true
  ) throws(ControlError) -> [OpenedLayer] {
    var options = OpenChain.Options(takesLocks: takesLocks, followsBackingFiles: false)
    options.keepsBitmaps = true
    options.needsKeys = false
    do throws(ImageFault) {
      return try OpenChain.open(path: path, format: .qcow2, access: access, options: options)
    } catch {
      throw ControlError(error)
    }
  }

  /// The same actions on bitmaps that stay: all others end with this process.
  private static func kept(
    _ actions: [BitmapAction], _ path: String
  ) throws(ControlError) -> [BitmapAction] {
    var kept: [BitmapAction] = []
    for action in actions {
      switch action {
      case .add(let name, let granularityByteCount, let isEnabled, _):
        kept.append(
          .add(
            name: name, granularityByteCount: granularityByteCount, isEnabled: isEnabled,
            isPersistent: true))
      case .freeze, .thaw:
        throw ControlError(
          path, "nobody serves the image, so there is no moment to hold",
          wayOut: "name the socket that stratad was given with --control")
      case .remove, .clear, .enable, .disable, .merge: kept.append(action)
      }
    }
    return kept
  }

  private static func change(
    _ actions: [BitmapAction], _ deliver: @escaping @Sendable (ControlAnswer) -> Void
  ) -> ExportCommand {
    .changeBitmaps(actions) { fault in
      deliver(fault.map { .refusal($0.reason) } ?? .done(actionCount: actions.count))
    }
  }

  /// Opens the image, has it obey, and closes it.
  private static func serve(
    _ path: String, _ access: ImageFile.Access, _ command: ExportCommand
  ) throws(ControlError) {
    let layers = try open(path, access)
    do {
      let mailbox = try Mailbox<ExportCommand>()
      var loop = try ExportLoop(
        plan: PlanCompiler.offlinePlan(layers, isReadOnly: access == .readOnly), mailbox: mailbox)
      _ = mailbox.post(command)
      loop.entrance.stopOrder.give(.drain)
      switch loop.run() {
      case .drained: return
      case .abandoned: throw ControlError(path, "stopped before its end")
      case .drainedWithoutBitmaps(let reason):
        throw ControlError(path, "its bitmaps are left marked as in use: \(reason)")
      case .failed(let reason): throw ControlError(path, reason)
      }
    } catch {
      throw error as? ControlError ?? ControlError(path, "\(error)")
    }
  }
}
