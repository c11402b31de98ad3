"""The one time limit of all waits in tests: a condition that takes longer will not come true on any machine."""

#: A machine that is five times slower than two cores of today, and busy, needs at most a tenth of this.
SECONDS_MAX = 300.0
