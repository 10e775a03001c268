// Search runs in a web worker, which browsers do not start for pages opened from the file system.
// There, and only there, run it in a hidden frame instead, so that search works in site/index.html.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.target = this.frame.contentWindow
      window.addEventListener("message", (event) => {
        if (event.source !== this.target) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
      const page = this.target.document
      page.open()
      page.write(`<!doctype html><body><script>
        postMessage = parent.postMessage.bind(parent)
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() =>
          new Promise((resolve, reject) => {
            const script = document.createElement("script")
            Object.assign(script, { src: url, onload: resolve, onerror: reject })
            document.body.appendChild(script)
          })), Promise.resolve())
      <\/script><script src="${url}"><\/script></body>`)
      page.close()
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve))
    }

    postMessage(data) {
      this.ready.then(() => this.target.dispatchEvent(
        new MessageEvent("message", { data, source: parent })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
