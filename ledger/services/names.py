"""Finding users by their names, which are claimed under digests made with the journal's key.

Older releases made them without a key. What was claimed so then still is.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from ledger.conditions import NoEvent
from ledger.domain.users import email_tag, name_digest, username_tag
from ledger.errors import TagTaken
from ledger.journal import Journal

TAGS = (username_tag, email_tag)


class Names:
    """The usernames and e-mail addresses that are claimed in one journal."""

    def __init__(self, journal: Journal) -> None:
        """Take the journal."""
        self._journal = journal

    async def digest(self, name: str) -> str:
        """Return the digest of a name in this journal."""
        return name_digest(name, await self._journal.privacy.name_key())

    async def user_id(self, name: str) -> UUID | None:
        """Find the user of a name; looks in every place in any case, to take the same time."""
        keys = (await self._journal.privacy.name_key(), None)
        found = [
            await self._journal.holder(make_tag(name, key)) for key in keys for make_tag in TAGS
        ]
        stream = next((each for each in found if each is not None), None)
        return None if stream is None else UUID(stream.removeprefix("user-"))

    async def unclaimed(
        self, stream: str, username: str | None, email: str | None
    ) -> Sequence[NoEvent]:
        """Return the conditions that no release without a key claims these names meanwhile.

        Raises TagTaken where one has done so for another user than that of the stream.
        """
        size, conditions = await self._journal.size(), []
        for make_tag, name in zip(TAGS, (username, email), strict=True):
            if name is None:
                continue
            tag = make_tag(name)
            if await self._journal.holder(tag) not in (None, stream):
                keyed = make_tag(name, await self._journal.privacy.name_key())
                raise TagTaken(keyed, (await self._journal.read_tagged(tag))[-1].offset)
            conditions.append(NoEvent(tag=tag, after=size - 1))
        return conditions
