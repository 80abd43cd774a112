// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd`: verbs on exports of any NBD server, by their URI.

import ArgumentParser
import ImageTools
import LinuxIO
import NBDClient
import NBDProtocol
import Synchronization

struct NBD: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "nbd",
    abstract: "Look at, copy and measure exports of NBD servers.",
    discussion: """
      A URI is nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH or \
      nbd+vsock://CID[:PORT]/EXPORT; what a URI does not allow is written as %XX. With nbds \
      instead of nbd there is TLS or no connection.

        strata nbd info 'nbd+unix:///?socket=/run/vm1.sock'
      """,
    subcommands: [
      NBDList.self, NBDInfo.self, NBDMap.self, NBDCopy.self, NBDPing.self,
    ])
}

/// Options of every verb that connects.
struct ConnectOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Time to connect and to agree.", valueName: "seconds"))
  var openTimeout = 30

  @OptionGroup var tls: ClientTLSOptions

  func validate() throws {
    guard (1...86_400).contains(openTimeout) else {
      throw ValidationError("--open-timeout is a number of seconds from 1 to 86400.")
    }
  }

  func options(
    contexts: ClientGoal.Contexts, reconnect: ClientOptions.Reconnect? = nil
  ) -> ClientOptions {
    ClientOptions(
      contexts: contexts, openSecondsMax: openTimeout, reconnect: reconnect, tls: tls.wishes)
  }
}

/// Parses an address that was given on the command line.
func parseURI(_ text: String) throws -> NBDURI {
  do throws(NBDURIFault) {
    return try NBDURI(text)
  } catch {
    throw CopyFault("\(text): \(error)")
  }
}

/// Parses a size such as 1G that was given on the command line.
func parseSize(_ text: String, of option: String) throws -> UInt64 {
  guard let byteCount = ByteCountText.parse(text) else {
    throw ValidationError("\(option) \(text) is not a size such as 4096 or 1G.")
  }
  return byteCount
}

/// What a task has come to, and the bell that says so.
private final class TaskEnd: Sendable {
  let bell: EventCounter
  let result = Mutex<Result<Void, any Error>>(.success(()))

  init() throws { bell = try EventCounter(.semaphore) }
}

/// Runs `body` with Swift's concurrency and waits for its end on this thread, which stays what it
/// was: the other verbs neither start threads nor change signals.
///
/// - Parameter uri: what faults of a client are about.
func runToEnd(
  about uri: NBDURI? = nil, _ body: @escaping @Sendable () async throws -> Void
) throws {
  let end = try TaskEnd()
  Task {
    do {
      try await body()
    } catch {
      end.result.withLock { $0 = .failure(error) }
    }
    end.bell.signal()
  }
  end.bell.take()
  do {
    try end.result.withLock { $0 }.get()
  } catch let fault as NBDClientFault {
    guard let uri else { throw fault }
    throw CopyFault("\(uri): \(fault)")
  }
}

/// Opens one of several exports; a fault names it.
func open(_ uri: NBDURI, _ options: ClientOptions) async throws(CopyFault) -> NBDConnection {
  do throws(NBDClientFault) {
    return try await NBDConnection.connect(uri, options)
  } catch {
    throw CopyFault("\(uri): \(error)")
  }
}
