"""A rate that a host is held to: a token bucket, which overdraws and then waits.

bucket = TokenBucket(rate=4.0, capacity=8.0)    # 8 at once, then 4 a second
time.sleep(bucket.take(1))
"""

import time


class TokenBucket:
    """`rate` tokens a second flow in, up to `capacity`. It starts full."""

    def __init__(self, rate: float, capacity: float):
        self.rate = rate
        self.capacity = capacity
        self._tokens = capacity
        self._filled_s = time.monotonic()

    def take(self, amount: float) -> float:
        """Takes `amount`, and returns how many seconds to wait until it has flowed in.

        The bucket may be overdrawn: even a block larger than its capacity gets through, after its time.
        """
        now_s = time.monotonic()
        self._tokens = min(self.capacity, self._tokens + (now_s - self._filled_s) * self.rate) - amount
        self._filled_s = now_s
        return max(0.0, -self._tokens / self.rate)
