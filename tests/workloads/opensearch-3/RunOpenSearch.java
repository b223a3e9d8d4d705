import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.opensearch.Version;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.index.reindex.ReindexModulePlugin;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.Plugin;
import org.opensearch.plugins.PluginInfo;
import org.opensearch.transport.Netty4ModulePlugin;

/** A single OpenSearch 3 node: {@code RunOpenSearch EMPTY_FOLDER PORT}, on 127.0.0.1, until it is ended. */
public class RunOpenSearch {
    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]).toAbsolutePath();
        Path config = Files.createDirectories(home.resolve("config"));
        Settings settings = Settings.builder()
            .put("path.home", home.toString())
            .put("cluster.name", "telltale-test")
            .put("node.name", "node-1")
            .put("network.host", "127.0.0.1")
            .put("http.port", arguments[1])
            .put("http.type", "netty4")
            .put("transport.port", "0")
            .put("transport.type", "netty4")
            .put("discovery.type", "single-node")
            // A full disk of the machine is not what is tested.
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), config, () -> "node-1");
        new EmbeddedNode(environment).start();
        Thread.currentThread().join();
    }

    /** A node's constructor that takes plugins is not public. */
    private static final class EmbeddedNode extends Node {
        EmbeddedNode(Environment environment) {
            super(environment, List.of(info(Netty4ModulePlugin.class), info(ReindexModulePlugin.class)), true);
        }

        private static PluginInfo info(Class<? extends Plugin> plugin) {
            String name = plugin.getName();
            return new PluginInfo(
                name, "on the class path", "1", Version.CURRENT, "21", name, null, List.of(), false);
        }
    }
}
