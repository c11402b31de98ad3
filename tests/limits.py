"""The one limit of what tests wait for: until it is so, or until no machine would still be at it."""

#: A machine that is five times slower than two cores of today, and busy with other work, needs a tenth of it at most.
SECONDS_MAX = 300.0
