"""YouTube's extractors, licenses and errors, as the fetch child judges them."""

import pytest
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError

from ingest.fetch.access import YoutubeConfig
from ingest.fetch.web import Web
from ingest.fetch.youtube import LIST_EXTRACTORS, VIDEO_EXTRACTORS, license_of, reason_of, refusal_of
from ingest.sample import RETRYABLE, Reason
from ingest.sources.youtube import video_id
from tests.fakes.tube import CC, CHANNEL, Tube
from tests.ingest.sources.test_youtube import WATCH, network
from tests.ingest.sources.test_youtube import streams as streams
from tests.ingest.sources.test_youtube import tube as tube
from tests.ingest.sources.test_youtube import youtube as youtube


def wrapped(error: ExtractorError) -> DownloadError:
    """As YoutubeDL reports it: an error that was made of another one is forgotten but for its words."""
    inner = (type(error.cause), error.cause, None) if error.cause else (type(error), error, None)
    return DownloadError(f"ERROR: [youtube] {error}", inner)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GeoRestrictedError("not available from your location", countries=["DE"]), Reason.GEO),
        (ExtractorError("Requested format is not available", expected=True), Reason.FORMAT),
        (ExtractorError("This video is DRM protected", expected=True), Reason.UNSUPPORTED),
        (
            ExtractorError(
                "All player responses are invalid. Your IP is likely being blocked by Youtube", expected=True
            ),
            Reason.BOT_CHECK,
        ),
        (
            ExtractorError("An extractor error has occurred.", cause=KeyError("videoDetails")),
            Reason.EXTRACTOR,
        ),
        (ExtractorError("Failed to extract any player response"), Reason.EXTRACTOR),
        (ExtractorError("YouTube said: The playlist does not exist.", expected=True), Reason.REMOVED),
    ],
)
def test_errors_of_yt_dlp_have_a_reason(error: ExtractorError, reason: Reason) -> None:
    refusal = refusal_of(wrapped(error))
    assert refusal and refusal.reason == reason and refusal.detail.startswith(str(error.orig_msg))


def test_an_error_of_the_network_is_not_youtubes() -> None:
    assert (
        refusal_of(wrapped(ExtractorError("Unable to download webpage", cause=ConnectionResetError())))
        is None
    )


def test_what_may_pass_is_retried_and_what_stays_is_final() -> None:
    assert {
        Reason.BOT_CHECK,
        Reason.RATE_LIMITED,
        Reason.FORMAT,
        Reason.EXTRACTOR,
        Reason.NETWORK,
    } <= RETRYABLE
    assert (
        not {
            Reason.REMOVED,
            Reason.PRIVATE,
            Reason.AGE,
            Reason.GEO,
            Reason.MEMBERS_ONLY,
            Reason.LIVE,
            Reason.LICENSE,
        }
        & RETRYABLE
    )
    assert reason_of("") not in (Reason.REMOVED, Reason.UNSUPPORTED)


@pytest.mark.parametrize(
    ("stated", "channel", "license"),
    [
        (CC, "UCx", "CC-BY-3.0"),
        (CC, CHANNEL, "CC-BY-3.0"),
        ("", "UCx", ""),
        (None, "UCx", ""),
        ("Standard YouTube License", "UCx", "all-rights-reserved"),
        ("Creative Commons", "UCx", "unknown"),
        ("creative commons attribution license (reuse allowed) not", "UCx", "unknown"),
        (None, CHANNEL, "own"),
        ("Standard YouTube License", CHANNEL, "own"),
        (None, CHANNEL.lower(), ""),
        (None, None, ""),
    ],
)
def test_only_the_mark_or_a_vouched_channel_is_a_license(
    stated: str | None, channel: str | None, license: str
) -> None:
    assert (
        license_of(
            {"license": stated, "channel_id": channel}, YoutubeConfig(vouched_channels={CHANNEL: "own"})
        )
        == license
    )


def test_extractors_are_those_of_youtube_and_no_other(tube: Tube) -> None:
    names = {}
    for extractors in (VIDEO_EXTRACTORS, LIST_EXTRACTORS):
        web = Web(network(tube), extractors)
        names[extractors] = {one.IE_NAME for one in web._ies.values()}
    assert names[VIDEO_EXTRACTORS] == {"youtube"}
    assert names[LIST_EXTRACTORS] == {
        "youtube",
        "youtube:tab",
        "youtube:playlist",
        "youtube:search",
        "youtube:search_url",
    }


def test_video_ids_are_read_from_every_form() -> None:
    for url in (
        "https://youtu.be/video000000",
        f"{WATCH}video000000&t=3",
        "https://m.youtube.com/shorts/video000000",
    ):
        assert video_id(url) == "video000000"
    assert video_id("https://www.youtube.com/@someone") == ""
