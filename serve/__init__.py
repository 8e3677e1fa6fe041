"""The model over HTTP: OpenAI's completions with per-request gates, on Ray Serve.

What comes in: a checkpoint, a gate policy if there is one, and HTTP requests. What goes out:
completions, whole or as streams; what the gates do to the streams; answers over long texts; figures
for operators. Of this project only mhc_model may be imported.

The way of a request:

    proxy.py      in Serve's HTTP proxy: another attempt, the deadline, the request's id
    app.py        in a replica: the routes
    auth.py       asks for the API key
    playground/   the page at /
    routing.py    /v1/gates and /v1/routing: what can be steered, and what that does
    tokens.py     /tokenize and /detokenize
    recursive/    /v1/recursive: a session over a long text
    service.py    /v1/completions, /v1/chat/completions, /v1/models, /health, /ready
    completions/  from a body to the engine's requests, one batch for all, and back
    monitoring/   hears of every request: metrics, access log
    errors.py     every error in OpenAI's envelope
    basics.py     what the proxy and the service share; the standard library only

Each imports only what stands below it, and proxy.py only basics.py. Around them:

    settings.py    what is served, where, on how much of the machine
    checks.py      what is wrong, said before Ray starts
    deployment.py  the Ray Serve application: replicas of an engine, each with an app
    launch.py      starts Ray and Serve, ends both when told to stop
    __main__.py    `python -m serve`

This file loads nothing, since Serve's proxy imports it; `__all__` names the modules for others.
"""

__all__ = ["app", "auth", "deployment", "proxy", "service", "settings"]
