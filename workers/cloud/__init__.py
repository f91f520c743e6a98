"""The cloud worker: questions to Claude through the Messages API.

`request` turns a `Generate` into the call, `reading` takes the stream in, `failures` puts every
way to fail into words, `transport` is the HTTP client, `claude` ties them to the SDK, and
`service` gives that a thread for `workers.host`. Importing the SDK costs seconds, so `service`
does it late and this module never.

Nothing here logs a question, an answer or the key.
"""
