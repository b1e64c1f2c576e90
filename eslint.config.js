import js from "@eslint/js";
import globals from "globals";

export default [
  // api, tests and this file hold what is ours; .venv holds the scripts of other packages
  { ignores: ["**/*", "!api/", "!api/pages/", "!api/pages/static/", "!api/pages/static/**", "!tests/", "!tests/frontend/", "!tests/frontend/**", "!eslint.config.js"] },
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2023, sourceType: "module" },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-implicit-globals": "error",
      "no-shadow-restricted-names": "error",
      "no-undef": "error",
      "no-unused-vars": "error",
      "no-use-before-define": "off", // functions stand where they read best
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": ["error", { destructuring: "all" }],
    },
  },
  { files: ["api/pages/static/**/*.js"], languageOptions: { globals: globals.browser } },
  { files: ["tests/frontend/**/*.js", "eslint.config.js"], languageOptions: { globals: globals.node } },
];
