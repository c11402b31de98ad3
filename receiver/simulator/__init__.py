"""A faithful QoD API server with a simulated network, for development and tests.

It is the operator's side of the contract, written from the API and from CAMARA's texts alone. It shares no code with
the receiver's parser, as both would then share the same mistakes.
    api, oauth, creation   requests of clients                control   requests of tests
    sessions               the life of a session (pure)       network   all sessions, and their timers
    dialects               what each release posts (pure)     notifier  the posts, a few at a time
    plan, faults, chance   the faults, from a seed            ledger    the posts and their answers

**Time.** `speed` shortens durations and does not move the clock. A session created for 60 s at speed 60 has `duration`
60, and `expiresAt` one second after `startedAt`. Every time that is told is the real time of the event: a receiver
knows one clock, its own, and would be right to distrust a sender whose clock runs ahead of it.

Durations in the life of a session and in the habits of its sender are shortened: the wait to be granted, the duration,
the 360 s that an ended session can still be read, delays, bursts, repetitions, reorderings. Durations on the wire are
not: slow bodies, time-outs, waits between retries, and the life of an access token depend on the other side's patience,
which is real. A skewed clock is wrong by real seconds.
"""
