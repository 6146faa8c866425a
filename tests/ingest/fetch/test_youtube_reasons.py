"""What YouTube says today, word for word, and which reason it is: nothing that may pass is final."""

from collections.abc import Callable
from typing import Any

import pytest

from ingest.fetch.youtube import reason_of
from ingest.sample import Media, Reason
from tests.fakes.tube import Video
from tests.ingest.sources.test_youtube import fetch as fetch
from tests.ingest.sources.test_youtube import refused, says
from tests.ingest.sources.test_youtube import streams as streams
from tests.ingest.sources.test_youtube import tube as tube
from tests.ingest.sources.test_youtube import youtube as youtube

LOGIN = "Use --cookies-from-browser or --cookies for the authentication."
MESSAGES = {
    Reason.REMOVED: [
        "Video unavailable",
        "Video unavailable. This content isn't available.",
        "This video is not available",
        "This video has been removed by the uploader",
        "This video has been removed for violating YouTube's Community Guidelines",
        "This video has been removed for violating YouTube's policy on hate speech.",
        "This video is no longer available because the YouTube account associated with this video has been terminated.",
        "This video is no longer available because the uploader has closed their YouTube account.",
        "This video is no longer available due to a copyright claim by Someone",
        "Video unavailable. This video contains content from SME, who has blocked it on copyright grounds",
        "YouTube said: The playlist does not exist.",
        "This channel does not exist.",
    ],
    Reason.PRIVATE: [
        "Private video",
        f"Private video. Sign in if you've been granted access to this video. {LOGIN}",
        "This video is private",
        f"This video is only available for registered users. {LOGIN}",
    ],
    Reason.AGE: [
        f"Sign in to confirm your age. This video may be inappropriate for some users. {LOGIN}",
        "This video is age-restricted and only available on YouTube",
        "The following content has been identified by the YouTube community as inappropriate or offensive to some audiences.",
    ],
    Reason.GEO: [
        "The uploader has not made this video available in your country",
        "Video unavailable. The uploader has not made this video available in your country",
        "This video contains content from UMG, who has blocked it in your country on copyright grounds",
        "This video is not available in your region",
    ],
    Reason.MEMBERS_ONLY: [
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        "This video is available to this channel's members on level: Fans (or any higher level). Join this channel to get access.",
        "This video is only available to Music Premium members",
        "This video requires payment to watch.",
        "This video requires purchase or rent to view",
    ],
    Reason.LIVE: [
        "This live event will begin in 3 hours.",
        "This live event will begin in a few moments.",
        "This live event has ended.",
        "This live stream recording is not available.",
        "Live stream offline",
        "Premieres in 5 days",
        "Premiere will begin shortly",
        "The channel is offline",
    ],
    Reason.BOT_CHECK: [
        f"Sign in to confirm you’re not a bot. {LOGIN}",
        "Video unavailable. YouTube is requiring a captcha challenge before playback",
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
        f"Please sign in. {LOGIN}",
        "Our systems have detected unusual traffic from your computer network.",
    ],
    Reason.RATE_LIMITED: [
        "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by YouTube",
        "Your account has been rate-limited by YouTube for up to an hour.",
    ],
    Reason.FORMAT: [
        "Requested format is not available. Use --list-formats for a list of available formats",
        "No video formats found!",
        "Only images are available for download. use --list-formats to see them",
        "Some web client https formats have been skipped as they are missing a URL. YouTube is forcing SABR streaming for this client.",
        "web client https formats require a GVS PO Token which was not provided.",
        "We're processing this video. Check back later.",
        "This video is being processed",
        "Video unavailable. Playback on other websites has been disabled by the video owner",
        "Video unavailable. This video is unavailable with Restricted Mode enabled.",
        "This video is unavailable. Error code: 152 - 4",
        "This video is not available on this app. Watch on the latest version of YouTube.",
    ],
    Reason.UNSUPPORTED: ["This video is DRM protected", "This playlist type is unviewable."],
    Reason.EXTRACTOR: [
        "Failed to extract any player response",
        "The page needs to be reloaded.",
        "An error that is new today",
    ],
}


@pytest.mark.parametrize(
    ("reason", "message"),
    [(reason, message) for reason, messages in MESSAGES.items() for message in messages],
)
def test_each_message_of_youtube_has_a_reason(reason: Reason, message: str) -> None:
    assert reason_of(message) == reason


CAPTCHA = {**says("LOGIN_REQUIRED", "Video unavailable"), "errorScreen": {"playerCaptchaViewModel": {"x": 1}}}
TITLE, TEXT = (
    {"content": "Content warning"},
    {"content": "identified by the YouTube community as inappropriate or offensive"},
)
INTERSTITIAL = {
    "playerInterstitialRenderer": {
        "content": {"interstitialViewModel": {"title": TITLE, "description": TEXT}}
    }
}
SHAPES = [
    (Reason.BOT_CHECK, CAPTCHA),
    (Reason.AGE, {"status": "CONTENT_CHECK_REQUIRED", "errorScreen": INTERSTITIAL}),
    (Reason.BOT_CHECK, says("LOGIN_REQUIRED", "Please sign in")),
    (Reason.FORMAT, says("ERROR", "We're processing this video. Check back later.")),
    (Reason.MEMBERS_ONLY, says("UNPLAYABLE", "This video is only available to Music Premium members")),
    (Reason.LIVE, says("LIVE_STREAM_OFFLINE", "Live stream offline")),
]


@pytest.mark.parametrize(("reason", "playability"), SHAPES)
def test_answers_of_youtubes_player_have_their_reason(
    fetch: Callable[[Video], Media], reason: Reason, playability: dict[str, Any]
) -> None:
    assert refused(lambda: fetch(Video("broken00000", playability=playability))).reason == reason


@pytest.mark.parametrize("claimant", ["Corporate Limited", "Sabrina"])
def test_the_name_of_a_claimant_is_no_reason(claimant: str) -> None:
    assert (
        reason_of(f"This video is no longer available due to a copyright claim by {claimant}")
        == Reason.REMOVED
    )


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Reason.GEO, "Video unavailable. This video is not available in your location"),
        (Reason.LIVE, "Offline."),
        (Reason.AGE, "The following content may contain suicide or self-harm topics."),
    ],
)
def test_rarer_messages_have_a_reason(reason: Reason, message: str) -> None:
    assert reason_of(message) == reason
