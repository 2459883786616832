import { defineConfig } from "vite";

// What is built is committed and shipped inside the wheel: a test builds it anew and compares.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/cloister/client/static/chat",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        entryFileNames: "chat.js",
        chunkFileNames: "[name].js",
        assetFileNames: "chat[extname]",
      },
    },
  },
});
