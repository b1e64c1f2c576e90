// What every page does while somebody is logged in. The entries of single pages import it first.

import { watchLogin } from "./lib/session.js";
import { startTimes } from "./lib/times.js";
import { watchNotices } from "./live/notices.js";
import { watchRevised } from "./live/revised.js";

watchLogin();
watchRevised();
watchNotices();
startTimes();
