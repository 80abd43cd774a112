// SPDX-License-Identifier: Apache-2.0
//
// How a client behaves: limits and deadlines. This file performs no I/O.

import NBDProtocol

/// Settings of one connection.
public struct ClientOptions: Hashable, Sendable {
  /// What to do when a connection ends that was not meant to.
  public struct Reconnect: Hashable, Sendable {
    /// Seconds for which a new connection is tried; requests are held meanwhile.
    public var secondsMax: Int
    /// The wait before the second try; it doubles with each further one.
    public var firstDelayMilliseconds: Int
    public var delayMillisecondsMax: Int
    /// Bytes of writes since the last flush that are kept to be written again. What does not fit
    /// is not kept, and a loss of the connection is then told at the next flush.
    public var replayByteCountMax: Int
    /// Whether the server is tried on after `secondsMax`. What is asked for fails at once then,
    /// until there is a connection again.
    public var isEndless = false

    public init(
      secondsMax: Int, firstDelayMilliseconds: Int = 100, delayMillisecondsMax: Int = 16_000,
      replayByteCountMax: Int = 64 << 20
    ) {
      self.secondsMax = secondsMax
      self.firstDelayMilliseconds = firstDelayMilliseconds
      self.delayMillisecondsMax = delayMillisecondsMax
      self.replayByteCountMax = replayByteCountMax
    }
  }

  /// The contexts to select; at most 64 well-formed names.
  public var contexts: ClientGoal.Contexts
  /// What to speak at best.
  public var modeMax: ProtocolMode
  /// Requests at once; further ones wait in the client.
  public var requestsInFlightMax: Int
  /// Requests that may wait or be in flight; one more is refused.
  public var requestsMax: Int
  /// Seconds from the first system call to the end of the handshake.
  public var openSecondsMax: Int
  /// Whether a server that does not answer yet is tried again until then.
  public var keepsTryingToOpen: Bool
  /// Seconds without any answer while requests are in flight, after which the connection counts
  /// as lost; nil: for ever, as a disk may be slow.
  public var replySecondsMax: Int?
  public var tls: ClientTLS
  /// nil: a lost connection stays lost.
  public var reconnect: Reconnect?

  public init(
    contexts: ClientGoal.Contexts = .all, modeMax: ProtocolMode = .extended,
    requestsInFlightMax: Int = 64, requestsMax: Int = 4_096, openSecondsMax: Int = 30,
    keepsTryingToOpen: Bool = false, replySecondsMax: Int? = nil, reconnect: Reconnect? = nil,
    tls: ClientTLS = ClientTLS()
  ) {
    precondition(requestsInFlightMax > 0, "no request may be in flight")
    precondition(requestsMax >= requestsInFlightMax, "fewer requests than may be in flight")
    precondition(openSecondsMax > 0, "no time to open")
    self.contexts = contexts
    self.modeMax = modeMax
    self.requestsInFlightMax = requestsInFlightMax
    self.requestsMax = requestsMax
    self.openSecondsMax = openSecondsMax
    self.keepsTryingToOpen = keepsTryingToOpen
    self.replySecondsMax = replySecondsMax
    self.reconnect = reconnect
    self.tls = tls
  }
}
