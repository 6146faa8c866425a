"""iNaturalist: observations with photos and sounds -> pairs of a photo and a sound.

    source.path=observations.csv            an export, or saved answers of the API: `inaturalist_export`
    source.path='https://api.inaturalist.org/v1/observations?taxon_id=3'     the API: `inaturalist_api`

Every photo and every sound has a license of its own (none means all rights reserved). A pair has what both
demand, and records both. A sound pairs with one photo of its observation, the freest one. What is flagged,
hidden or replaced by a placeholder is not listed, and counted.
"""

import logging
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cluster.jsonl import JsonObject
from cluster.scratch import scratch_folder
from cluster.storage import open_store
from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.licenses import combined, license_code, strictness
from ingest.sample import Item, storable
from ingest.sources.inaturalist_api import observations_of_api
from ingest.sources.inaturalist_export import read_export
from ingest.sources.settings import InaturalistConfig, SourceConfig, refuse_license

log = logging.getLogger(__name__)

KINDS = ("photo", "sound")  # in the order of the ids in that of a pair
# in addresses and attributions: what the site puts in the place of a medium that it took down
PLACEHOLDER = re.compile(r"copyright[-_ ]?infring|media[-_ ]hidden|inaturalist\.org/assets/", re.IGNORECASE)
EXAMPLE = "https://api.inaturalist.org/v1/observations?taxon_id=3"
# what the site asks of users of its API (its page of recommended practices)
MAX_PER_MINUTE = 60
MAX_PER_DAY = 10_000


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Pairs, each once, in order: see `ingest.sources.registry`.

    Full pages of the API and the day's requests are kept in `output`. An API that fails after its first page
    ends the list there, with a line in the log.
    """
    refuse_license(config, "iNaturalist states a license per photo and per sound")
    return _listed(config.path, config.inaturalist, network, output)


def _listed(path: str, config: InaturalistConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    if not path.startswith(("http://", "https://")):
        yield from _pairs(read_export(Path(path)), config.photo_size)
        return
    if not urllib.parse.urlsplit(path).path.endswith("/observations"):
        raise UserError(f"source.path={path}: give the API's observations, as {EXAMPLE}")
    _check_rates(path, config, network)
    store = open_store(output) if output else None
    with scratch_folder("list") as spool:
        yield from _pairs(observations_of_api(path, config, network, spool, store), config.photo_size)


def _check_rates(url: str, config: InaturalistConfig, network: FetchConfig) -> None:
    """The site's limits hold for the site; a server of your own may be called faster."""
    if urllib.parse.urlsplit(url).netloc in network.allow_private:
        return
    if config.requests_per_min > MAX_PER_MINUTE or config.requests_per_day > MAX_PER_DAY:
        limits = f"at most {MAX_PER_MINUTE} requests a minute and {MAX_PER_DAY} a day"
        raise UserError(f"source.inaturalist: the site asks for {limits}")


def _pairs(observations: Iterable[JsonObject], photo_size: str) -> Iterator[Item]:
    seen: set[str] = set()
    num_alone = 0
    num_withdrawn = 0
    for observation in observations:
        pairs = pairs_of(observation, photo_size)
        num_alone += not pairs
        for kind in KINDS:
            num_withdrawn += sum(map(is_withdrawn, _stated_media(observation, kind)))
        for item in pairs:
            if item.id not in seen:
                seen.add(item.id)
                yield item
    if num_alone:
        log.info("%d observations have no pair of a photo and a sound that may be listed", num_alone)
    if num_withdrawn:
        message = "%d photos and sounds are flagged, hidden or replaced by the site, and not listed"
        log.warning(message, num_withdrawn)


def pairs_of(observation: JsonObject, photo_size: str) -> list[Item]:
    """A pair per sound that may be listed: with the freest photo of the observation, the first of several."""
    photos = [photo for photo in _media(observation, "photo") if _photo_url(photo, photo_size)]
    if not photos:
        return []
    # one photo for all of the sounds: the one that demands least beside them
    photo = min(photos, key=lambda photo: strictness(_code(photo)))
    photo_url = _photo_url(photo, photo_size)
    sounds = [sound for sound in _media(observation, "sound") if sound.get("file_url")]
    return [_pair(observation, photo, sound, photo_url) for sound in sounds]


def _pair(observation: JsonObject, photo: JsonObject, sound: JsonObject, photo_url: str) -> Item:
    taxon = observation.get("taxon") or {}
    user = observation.get("user") or {}
    title = taxon.get("preferred_common_name") or taxon.get("name") or observation.get("species_guess") or ""
    photo_code = _code(photo)
    sound_code = _code(sound)
    meta = {
        "observation": observation.get("id"),
        "taxon": taxon.get("name"),
        "photo_license": photo_code,
        "sound_license": sound_code,
        "photo_attribution": photo.get("attribution"),
        "sound_attribution": sound.get("attribution"),
    }
    return Item(
        source="inaturalist",
        id=f"{photo['id']}_{sound['id']}",
        url=photo_url,
        license=combined(photo_code, sound_code),
        sound_url=str(sound["file_url"]),
        channel=storable(str(user.get("login") or "")),
        title=storable(str(title)),
        meta={name: _storable(value) for name, value in meta.items() if value},
    )


def _storable(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value


def pair_license(observation: JsonObject, pair_id: str) -> str:
    """What the photo and the sound of `pair_id` (as of `pairs_of`) demand together now; "" where one is no
    longer listed.
    """
    codes = []
    for kind, medium_id in zip(KINDS, pair_id.split("_"), strict=False):
        # judged as when it was listed: what was flagged since is no longer there
        listed = (medium for medium in _media(observation, kind) if str(medium["id"]) == medium_id)
        medium = next(listed, None)
        codes.append(_code(medium) if medium else "")
    return combined(*codes) if len(codes) == 2 and all(codes) else ""


def _media(observation: JsonObject, kind: str) -> list[JsonObject]:
    """The photos or sounds that may be listed."""
    return [medium for medium in _stated_media(observation, kind) if not is_withdrawn(medium)]


def _stated_media(observation: JsonObject, kind: str) -> list[JsonObject]:
    """Photos or sounds with an id, in the API's shape or in that of the site (`observation_photos`)."""
    media = observation.get(f"{kind}s") or []
    if not media:  # a page saved from the site, not from the API
        links = observation.get(f"observation_{kind}s") or []
        media = [link.get(kind) for link in links if isinstance(link, dict)]
    dicts = [medium for medium in media if isinstance(medium, dict)]
    return [medium for medium in dicts if str(medium.get("id") or "").isdecimal()]


def is_withdrawn(medium: JsonObject) -> bool:
    """Whether the site hides a photo or a sound, its users dispute it, or it is replaced by a placeholder."""
    if medium.get("hidden") or medium.get("moderator_actions"):
        return True
    if any(map(_disputes, _as_list(medium.get("flags")))):
        return True
    texts = [str(value) for name, value in medium.items() if name.endswith("url") or name == "attribution"]
    return any(map(PLACEHOLDER.search, texts))


def _disputes(flag: Any) -> bool:
    """Whether a flag stands against a medium. The API gives an object, an old export its name."""
    if not isinstance(flag, dict):
        return True
    # a flag for copyright counts even when it is resolved: the site does not say in whose favour
    return flag.get("resolved") is not True or "copyright" in str(flag.get("flag")).lower()


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value] if value else []


def _code(medium: JsonObject) -> str:
    """The license of a photo or a sound.

    Nothing stated is all rights reserved; what an export does not say is `unknown` (`inaturalist_export`).
    """
    stated = medium.get("license_code")
    return license_code("" if stated is None else str(stated), site="inaturalist")


def _photo_url(photo: JsonObject, size: str) -> str:
    """The photo's address at `size`; the API names one size, and the site keeps the others beside it."""
    names = ("url", "original_url", "large_url", "medium_url")
    url = str(next((photo[name] for name in names if photo.get(name)), ""))
    return re.sub(r"/(square|thumb|small|medium|large|original)\.(\w+)(\?.*)?$", rf"/{size}.\2", url)
