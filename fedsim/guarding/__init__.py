"""What a client does for itself: it attacks its own update before it sends it."""

from fedsim.guarding.leak_guard import LeakGuard, leak_guard

__all__ = ["LeakGuard", "leak_guard"]
