"""Channels that come and go together.

A channel is made by a convolution (and its batch norm) and used by the next; through shortcuts several convolutions
make the same channels. Such a group can lose a channel only everywhere at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that come and go together.

    Attributes:
        makers: names of the modules whose outputs they are: convolutions, linear layers and their batch norms.
        users: names of the convolutions and linear layers whose inputs they are.
    """

    makers: tuple[str, ...]
    users: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first maker's."""
        return self.makers[0]

    def within(self, parent: str) -> "ChannelGroup":
        """The same group seen from a module that holds this one as `parent`."""
        return ChannelGroup(
            tuple(f"{parent}.{name}" for name in self.makers), tuple(f"{parent}.{name}" for name in self.users)
        )
