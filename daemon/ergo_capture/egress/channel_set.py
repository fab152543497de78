"""The egress channels of one session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ergo_capture.adapter.egress import EgressConfig, EgressFailure
from ergo_capture.egress.channel import EgressChannel, EgressLifecycleError
from ergo_capture.kernel.effects import IntentRecord
from ergo_capture.kernel.records import CapturedIntentAck

#: Seconds that a channel may take to say ``ready``, and to exit after ``end``: the reference's.
GRACE_SECONDS: Final = 5.0


class ChannelSet:
    """The channels that a graph's configuration names, started and ended together.

    Args:
        config: the channels, and the routes of kinds of intents to them.
        grace: seconds that each may take to say ``ready``, and to exit after ``end``.
        report: called with a channel's name and a line of its standard error.
    """

    def __init__(
        self,
        config: EgressConfig,
        *,
        grace: float = GRACE_SECONDS,
        report: Callable[[str, str], None] = lambda _channel, _line: None,
    ) -> None:
        self.config = config
        self._grace = grace
        self._report = report
        self._channels: dict[str, EgressChannel] = {}

    @property
    def is_up(self) -> bool:
        """Whether all channels were started, and none has failed."""
        return len(self._channels) == len(self.config.channels)

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each running channel."""
        return {name: channel.pid for name, channel in self._channels.items()}

    async def start(self) -> None:
        """Start each channel, in the order of their names, and wait until it is ready.

        Raises:
            EgressLifecycleError: one does not become ready; none is left running.
        """
        try:
            for name, command in self.config.channels.items():
                channel = EgressChannel(
                    name,
                    command,
                    self.config.kinds_of(name),
                    self._grace,
                    lambda line, name=name: self._report(name, line),  # type: ignore[misc]
                )
                self._channels[name] = channel
                await channel.greet()
        except BaseException:
            await self.kill()
            raise

    async def dispatch(self, intent: IntentRecord) -> CapturedIntentAck:
        """Send an intent to the channel that its kind is routed to; return the ack.

        Raises:
            EgressFailure: it is not acknowledged; every channel was killed.
        """
        route = self.config.routes[intent.kind]
        try:
            return await self._channels[route.channel].dispatch(intent, self.config.timeout_of(intent.kind) / 1000)
        except EgressFailure:
            await self.kill()
            raise

    async def finish(self, *, host_stop: bool = False) -> None:
        """Check that no channel sends a line after its last ack, and end them, in order.

        Args:
            host_stop: whether the run was stopped, so that a channel may have ended by itself.

        Raises:
            EgressLifecycleError: the first error of a channel; every channel has ended then.
        """
        errors: list[EgressLifecycleError] = []
        try:
            for channel in self._channels.values():
                await channel.check_silent(may_have_ended=host_stop)
            for channel in self._channels.values():
                try:
                    await channel.end()
                except EgressLifecycleError as error:
                    errors.append(error)
        finally:
            await self.kill()
        if errors:
            raise errors[0]

    async def kill(self) -> None:
        """Kill every channel."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.signal_kill()
        for channel in channels.values():
            await channel.kill()
