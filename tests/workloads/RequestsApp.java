import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** The routes of requests_app.py on the JDK's own HTTP server: {@code RequestsApp.java PORT THREADS}. */
public final class RequestsApp {
    private static final long SPENT_NS = 4_000_000;

    static void spend_a() {
        long end = System.nanoTime() + SPENT_NS;
        while (System.nanoTime() < end);
    }

    static void spend_b() {
        long end = System.nanoTime() + SPENT_NS;
        while (System.nanoTime() < end);
    }

    private static void answer(HttpExchange exchange) throws IOException {
        byte[] body = "ok\n".getBytes();
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(arguments[0]), threads = Integer.parseInt(arguments[1]);
        InetSocketAddress address = new InetSocketAddress(InetAddress.getLoopbackAddress(), port);
        HttpServer server = HttpServer.create(address, 0);
        server.setExecutor(Executors.newFixedThreadPool(threads));
        server.createContext("/a/", exchange -> {
            spend_a();
            answer(exchange);
        });
        server.createContext("/b/", exchange -> {
            spend_b();
            answer(exchange);
        });
        server.start();
    }
}
