"""How soon a connection over a network that went silent is closed, for every server that Osteon talks to.

After IDLE_S of silence a probe is sent each INTERVAL_S, COUNT times: so 25 s in all. What was sent and is not
acknowledged for UNSENT_S closes the connection as well. Without these Linux waits for two hours, or 15 minutes.
"""

import socket

IDLE_S, INTERVAL_S, COUNT, UNSENT_S = 10, 5, 3, 15
# option of IPPROTO_TCP to its value; only those that this system has
OPTIONS = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", COUNT),
        ("TCP_USER_TIMEOUT", UNSENT_S * 1000),
    )
    if hasattr(socket, name)
}
# as setsockopt takes them
SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, option, value) for option, value in OPTIONS.items()),
]
