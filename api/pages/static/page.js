// What every page does while somebody is logged in. The entries of single pages import it first.

import { watchMenus } from "./lib/menus.js";
import { watchLogin } from "./lib/session.js";
import { startTimes } from "./lib/times.js";
import { watchNotices } from "./live/notices.js";
import { watchRevised } from "./live/revised.js";

watchLogin();
watchMenus();
watchRevised();
watchNotices();
startTimes();
