"""From received files to durable rows, messages and a receipt, whichever way the files came."""
