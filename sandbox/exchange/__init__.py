"""A simulated Binance Spot exchange: WebSocket streams, REST, faults on command, and its own record.

In a test: `with Exchange(Settings(rate=500)) as exchange: …exchange.ws_url…exchange.cut()`. As a process:
`python -m sandbox.exchange --port 9443 --rate 500` (see `--help`). Commands are methods of `Exchange` and
`POST /control/<name>` with a JSON object (`-` for `_`), answered with what was done, or 400 and `error`:

- of connections, with `target` `"all"` (default), an id, or `"next"` (the next `connections` to open, 1):
  `cut` | `close` code reason | `mute` seconds | `half_open` seconds | `resume` | `slow` delay_s bytes_per_s |
  `malformed` text | `invalid_utf8` | `inject` frames opcode fragments | `shutdown` cut_after_s code |
  `tamper` stream mode (wrong, repeated, missing, out_of_order) count offset |
  `silence` stream for_good | `ignore` count |
  `after` frames command arguments: one of these once so many more data frames were sent
- of connections to come: `stall_handshake` connections | `handshake_status` status connections retry_after_s
  (0 connections: all until `disarm`) | `refuse` seconds | `accept` | `disarm`
- of the market: `send` stream frames target wrap opcode | `burst` count symbol | `rate` rate mix |
  `status` status | `list_symbol` symbol status | `replay` path speed repeat to_all on_subscribe
- of REST: `rest` status count delay_s lag_s forgive

Questions are `GET /control/connections`, `GET /control/sent?connection=&stream=&kind=`, `GET /control/market`,
`GET /control/history?symbol=&stream=&first=` and `GET /control/book?symbol=&levels=`. All of it is served on the
public port and on the control port, which stays open while connections are refused.
"""

from sandbox.exchange.exchange import Exchange
from sandbox.exchange.settings import Limits, Mix, RestRules, Settings, SettingsError

__all__ = ["Exchange", "Limits", "Mix", "RestRules", "Settings", "SettingsError"]
