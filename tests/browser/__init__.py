"""Pages as their users meet them: a real Chromium against a real server."""
