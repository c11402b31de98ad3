"""A faithful QoD API server with a network behind it, to develop and to test against.

It is an operator's side of the contract, written from the API and from CAMARA's texts alone. It shares no code with
the parser of the receiver, or both would agree on the same mistakes.

    api, oauth, creation   what a client asks for             control   what a test asks for
    sessions               the life of a session (pure)       network   all of them, and their timers
    dialects               what each release posts (pure)     notifier  the posts, a few at a time
    plan, faults, chance   what goes wrong, from a seed       ledger    what was sent, what was answered

**Time.** `speed` shortens durations and does not move the clock. A session asked for 60 s at speed 60 has `duration`
60, and `expiresAt` one second after `startedAt`. Every time that is told is the time on the wall at which it happened:
a receiver knows one clock, its own, and would be right to distrust a sender whose clock runs ahead of it.

Shortened is all that belongs to the life of a session and to the habits of its sender: the wait to be granted, the
duration, the 360 s that an ended session can still be read, delays, bursts, repetitions, reorderings. What happens on
the wire is not: slow bodies, time-outs, waits between retries, and the life of an access token are about another's
patience, which is real. A skewed clock is wrong by real seconds.
"""
