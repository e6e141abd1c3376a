"use strict";
trd.start();
